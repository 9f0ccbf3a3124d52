// The extension module `pygen._C_cuda`. The glue registers its ops when this loads.
#include <Python.h>

static PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_C_cuda", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};

PyMODINIT_FUNC PyInit__C_cuda() { return PyModule_Create(&definition); }
