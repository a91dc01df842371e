"""The project's own GPT-2 inference on the CPU: Numba and LLVM, no compiler at the user's.

cpu.py       which instructions this CPU gets
jit.py       where compiled code is kept; importing it is what imports Numba
llvm.py      building blocks of generated code: vectors, memory, exp
simd.py      what compiled Python can call: vectors of 16 floats, GELU, atomics, pause
kernels.py   how weights and activations are held, as types
dot.py       dot products of bytes, as each CPU has them
tiles.py     32 outputs by some rows, in registers
matmul.py    a linear layer over many rows
attention.py keys, values, softmax
forward.py   one pass of the model over a batch of rows
sample.py    from logits to a token
record.py    how the token was chosen
decode.py    many steps in one call
team.py      the threads
pack.py      quantise and repack a checkpoint; the packed cache on disk
roofline.py  what this machine's memory can deliver
"""
