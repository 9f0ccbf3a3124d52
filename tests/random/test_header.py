"""csrc/common/philox.h for single words, as CUDA kernels take it: the reference's bits."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from pygen.reference import random as reference

SOURCE = """
#include "common/philox.h"
using namespace pygen::philox;
extern "C" void all(const uint32_t* a, const uint32_t* b, float* out, long n) {
  for (long i = 0; i < n; ++i, out += 6) {
    normal(a[i], b[i], out[0], out[1]);
    out[2] = uniform(a[i]), out[3] = logistic(a[i]), out[4] = gumbel(a[i]);
    out[5] = float(exp_units(-32.0f * uniform(a[i])));
  }
}
extern "C" void words(const uint32_t* c, uint64_t seed, uint32_t* out) {
  const Words w = encrypt({c[0], c[1], c[2], c[3]}, seed);
  out[0] = w.x, out[1] = w.y, out[2] = w.z, out[3] = w.w;
}
"""


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")
def test_the_header_word_by_word(tmp_path: Path) -> None:
    (tmp_path / "all.cpp").write_text(SOURCE)
    include = Path(__file__).parents[2] / "csrc"
    command = ["g++", "-std=c++17", "-O2", "-ffp-contract=off", "-shared", "-fPIC", f"-I{include}"]
    subprocess.run([*command, "-o", str(tmp_path / "all.so"), str(tmp_path / "all.cpp")], check=True)
    library = ctypes.CDLL(str(tmp_path / "all.so"))

    edges = torch.tensor([0, 1, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1])
    w = torch.cat([edges, torch.randint(2**32, (50_000,))])
    pair = torch.stack([w, w.flip(0)])[:, None]  # words a and b of counters, [2, 1, n]
    a, b = (t.numpy().astype(np.uint32) for t in (w, w.flip(0)))
    found = np.empty((len(w), 6), np.float32)
    library.all(*(ctypes.c_void_p(t.ctypes.data) for t in (a, b, found)), ctypes.c_long(len(w)))

    normal = reference._normal(pair.movedim(0, -2))[0]  # [2, n]
    down = torch.stack([-32.0 * reference._uniform(w), torch.zeros(len(w))], 1)
    expected = [*normal, reference._uniform(w), reference._logistic(w), reference._gumbel(w)]
    expected.append(reference.weights(down)[:, 0].float())
    for k, t in enumerate(expected):
        assert np.array_equal(found[:, k], t.numpy()), k

    counter, words = np.array([1, 2, 3, 4], np.uint32), np.empty(4, np.uint32)
    library.words(
        *(ctypes.c_void_p(counter.ctypes.data), ctypes.c_uint64(2**63 + 5), ctypes.c_void_p(words.ctypes.data))
    )
    assert words.tolist() == [int(t) for t in reference.philox(torch.tensor([1, 2, 3, 4]).unbind(), 2**63 + 5)]
