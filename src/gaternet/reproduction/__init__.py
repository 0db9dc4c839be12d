"""Train what a table needs, and write down what was measured: `gaternet reproduce`."""
