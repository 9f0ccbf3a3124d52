"""The op contract as code: an op registers an `OpSpec` and its samples, and `tests/contract` does the rest.

- `spec`: what an op says of itself, and the registry (`tests/<family>/samples.py` fills it).
- `backend`: the implementations that this host can run.
- `combine`: few cases that still cover every pair of choices.
- `layouts`, `calls`: a sample becomes tensors of some dtype, layout and device; running them, with gradients.
- `tolerance`: how far from the truth is too far.
- `checks`: one function per item of the contract. `tests/contract` runs each on every op,
- `toy`, `broken`: and on an op that keeps the contract, and on copies of it that each break one item.
"""
