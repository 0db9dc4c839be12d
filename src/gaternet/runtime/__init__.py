"""Forms of a model that run elsewhere, or that compute its open filters only."""

from gaternet.runtime.compiler import compile, compile_backbone

__all__ = ["compile", "compile_backbone"]
