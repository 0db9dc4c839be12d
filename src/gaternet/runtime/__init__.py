"""Running gated models where they are used: open filters only, or exported."""
