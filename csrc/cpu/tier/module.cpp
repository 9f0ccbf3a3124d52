// The extension module of one tier: nothing but a capsule with the table.
#include <Python.h>

#include "tier.h"

namespace pygen {
inline namespace CPU_CAPABILITY {
namespace {

const Table kTable{&coupling_kernels, &conv_kernels,   &frechet_kernels, &gates_kernels,   &heads_kernels,
                   &loss_kernels,     &made_kernels,   &mixture_kernels, &moments_kernels, &random_kernels,
                   &sampler_kernels,  &spline_kernels, &stats_kernels,   &step_kernels,    &probe_kernels};

PyModuleDef definition = {PyModuleDef_HEAD_INIT, "tier", nullptr, 0, nullptr, nullptr, nullptr, nullptr, nullptr};

}  // namespace
}  // namespace CPU_CAPABILITY
}  // namespace pygen

#define PYGEN_JOIN_(a, b) a##b
#define PYGEN_JOIN(a, b) PYGEN_JOIN_(a, b)

PyMODINIT_FUNC PYGEN_JOIN(PyInit_, TORCH_EXTENSION_NAME)() {
  PyObject* module = PyModule_Create(&pygen::definition);
  if (module == nullptr) return nullptr;
  PyObject* capsule = PyCapsule_New(const_cast<pygen::Table*>(&pygen::kTable), "pygen.table", nullptr);
  if (capsule == nullptr || PyModule_AddObject(module, "table", capsule) < 0) {
    Py_XDECREF(capsule);
    Py_DECREF(module);
    return nullptr;
  }
  return module;
}
