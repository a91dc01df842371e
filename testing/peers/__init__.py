"""The peers that testing/peer_comparison.py measures: one small module for each engine.

A peer's module runs in the environment that `make peers` makes, never in the program's own. It
offers `convert(folder, conversion, target)` where its weights need another format, and
`load(folder, converted, variant, threads) -> protocol.Engine`.
"""
