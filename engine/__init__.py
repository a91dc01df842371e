"""GPT-2 inference, measurement and training. Knows nothing of windows, terminals or HTTP."""

__version__ = "0.1.0"
