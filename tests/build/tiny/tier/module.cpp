// Stands in for csrc/cpu/tier/module.cpp: a tier without kernels, which compiles in no time.
#include <Python.h>

#include "../table.h"

#define PYGEN_TEXT_(a) #a
#define PYGEN_TEXT(a) PYGEN_TEXT_(a)
#define PYGEN_JOIN_(a, b) a##b
#define PYGEN_JOIN(a, b) PYGEN_JOIN_(a, b)

static pygen::Table table{PYGEN_TEXT(CPU_CAPABILITY)};
static PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "tier", nullptr, 0, nullptr, nullptr, nullptr, nullptr, nullptr};

PyMODINIT_FUNC PYGEN_JOIN(PyInit_, TORCH_EXTENSION_NAME)() {
  PyObject* module = PyModule_Create(&definition);
  PyModule_AddStringConstant(module, "capability", table.capability);
  PyModule_AddObject(module, "table", PyCapsule_New(&table, "pygen.table", nullptr));
  return module;
}
