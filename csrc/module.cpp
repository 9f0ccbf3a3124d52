// The extension module `pygen._C`: which tier's kernels the glue calls. The glue registers its ops when this loads.
#include <Python.h>

#include "cpu/table.h"

namespace pygen {
const Table* table = nullptr;
}

static PyObject* use(PyObject*, PyObject* capsule) {
  void* pointer = PyCapsule_GetPointer(capsule, "pygen.table");
  if (pointer == nullptr) return nullptr;
  pygen::table = static_cast<const pygen::Table*>(pointer);
  Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"use", use, METH_O, "use(table): calls this tier's kernels from now on."},
    {nullptr, nullptr, 0, nullptr},
};
static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};

PyMODINIT_FUNC PyInit__C() { return PyModule_Create(&definition); }
