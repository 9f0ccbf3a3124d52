// The extension module `pygen._C`: which tier's kernels the glue calls, and quick calls of ops from Python.
// The glue registers its ops when this loads.
#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <Python.h>
#include <torch/csrc/Dtype.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/object_ptr.h>
#include <torch/csrc/utils/pybind.h>

#include "cpu/table.h"

namespace pygen {
const Table* table = nullptr;
thread_local PyObject* progress = nullptr;  // a function of the rows done and of all; null: none

namespace {

PyObject* use(PyObject*, PyObject* capsule) {
  void* pointer = PyCapsule_GetPointer(capsule, "pygen.table");
  if (pointer == nullptr) return nullptr;
  table = static_cast<const Table*>(pointer);
  Py_RETURN_NONE;
}

// --- quick calls -----------------------------------------------------------------------------------------------------
//
// torch.ops finds an overload, converts arguments by their schema and looks for overrides, in about a microsecond and a
// half: more than a kernel on a small tensor takes. With plain tensors, lists of them, numbers, strings, shapes and
// dtypes in the schema's order there is nothing to find; anything else goes to torch.ops.

struct QuickOp {
  c10::OperatorHandle handle;
  PyObject* fallback;  // the op of torch.ops; lives as long as its module does, so it is never given back
};

// A list or tuple of plain tensors.
bool convert_tensors(PyObject* arg, c10::IValue& value) {
  const bool list = PyList_CheckExact(arg);
  if (!list && !PyTuple_CheckExact(arg)) return false;
  c10::List<at::Tensor> tensors;
  for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(arg); ++i) {
    PyObject* item = PySequence_Fast_GET_ITEM(arg, i);
    if (!THPVariable_CheckExact(item)) return false;
    tensors.push_back(THPVariable_Unpack(item));
  }
  value = std::move(tensors);
  return true;
}

bool convert(PyObject* arg, const c10::Argument& argument, c10::IValue& value) {
  if (argument.type()->kind() == c10::TypeKind::ListType &&
      argument.type()->castRaw<c10::ListType>()->getElementType()->kind() == c10::TypeKind::TensorType) {
    return convert_tensors(arg, value);
  }
  if (THPVariable_CheckExact(arg)) {
    value = THPVariable_Unpack(arg);
  } else if (arg == Py_None) {
    value = c10::IValue();
  } else if (PyBool_Check(arg)) {
    value = arg == Py_True;
  } else if (PyUnicode_CheckExact(arg)) {
    Py_ssize_t size = 0;
    const char* text = PyUnicode_AsUTF8AndSize(arg, &size);
    if (text == nullptr) throw python_error();
    value = std::string(text, size_t(size));
  } else if (PyFloat_CheckExact(arg)) {
    value = PyFloat_AS_DOUBLE(arg);
  } else if (PyLong_CheckExact(arg)) {
    int overflow = 0;
    value = int64_t(PyLong_AsLongLongAndOverflow(arg, &overflow));
    return overflow == 0;
  } else if (THPDtype_Check(arg)) {
    value = int64_t(reinterpret_cast<THPDtype*>(arg)->scalar_type);
  } else if (PyTuple_CheckExact(arg)) {  // a shape
    std::vector<int64_t> sizes;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(arg); ++i) {
      int overflow = 0;
      PyObject* size = PyTuple_GET_ITEM(arg, i);
      if (!PyLong_CheckExact(size)) return false;
      sizes.push_back(PyLong_AsLongLongAndOverflow(size, &overflow));
      if (overflow != 0) return false;
    }
    value = std::move(sizes);
  } else {
    return false;
  }
  return true;
}

PyObject* wrap(const std::vector<at::Tensor>& tensors) {
  THPObjectPtr list(PyList_New(Py_ssize_t(tensors.size())));
  for (size_t i = 0; list && i < tensors.size(); ++i) {
    PyObject* item = THPVariable_Wrap(tensors[i]);
    if (item == nullptr) return nullptr;
    PyList_SET_ITEM(list.get(), Py_ssize_t(i), item);
  }
  return list.release();
}

PyObject* call(PyObject* self, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  const auto& op = *static_cast<const QuickOp*>(PyCapsule_GetPointer(self, "pygen.op"));
  torch::jit::Stack stack(static_cast<size_t>(count));
  const auto& arguments = op.handle.schema().arguments();
  bool plain = size_t(count) == arguments.size() && !at::impl::torch_function_mode_enabled();
  for (size_t i = 0; plain && i < stack.size(); ++i) plain = convert(args[i], arguments[i], stack[i]);
  if (!plain) return PyObject_Vectorcall(op.fallback, args, size_t(count), nullptr);
  {
    pybind11::gil_scoped_release release;
    op.handle.callBoxed(stack);
  }
  if (stack.size() == 1) {
    return stack[0].isTensor() ? THPVariable_Wrap(std::move(stack[0]).toTensor()) : wrap(stack[0].toTensorVector());
  }
  THPObjectPtr result(PyTuple_New(Py_ssize_t(stack.size())));
  for (size_t i = 0; result && i < stack.size(); ++i) {
    PyObject* item = THPVariable_Wrap(std::move(stack[i]).toTensor());
    if (item == nullptr) return nullptr;
    PyTuple_SET_ITEM(result.get(), Py_ssize_t(i), item);
  }
  return result.release();
  END_HANDLE_TH_ERRORS
}

PyMethodDef call_method = {"quick_op", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(call)), METH_FASTCALL,
                           nullptr};

PyObject* quick(PyObject*, PyObject* args) {
  HANDLE_TH_ERRORS
  const char* name = nullptr;
  PyObject* fallback = nullptr;
  if (!PyArg_ParseTuple(args, "sO", &name, &fallback)) return nullptr;
  Py_INCREF(fallback);
  auto* op = new QuickOp{c10::Dispatcher::singleton().findSchemaOrThrow(name, ""), fallback};
  THPObjectPtr capsule(PyCapsule_New(op, "pygen.op", nullptr));
  return capsule ? PyCFunction_New(&call_method, capsule.get()) : nullptr;
  END_HANDLE_TH_ERRORS
}

// --- progress --------------------------------------------------------------------------------------------------------

PyObject* report_to(PyObject*, PyObject* given) {
  PyObject* previous = progress;
  progress = given == Py_None ? nullptr : given;
  Py_XINCREF(progress);
  Py_XDECREF(previous);
  Py_RETURN_NONE;
}

PyMethodDef methods[] = {
    {"use", use, METH_O, "use(table): calls this tier's kernels from now on."},
    {"quick", quick, METH_VARARGS,
     "quick(name, op): a function that calls an op whose outputs are tensors, or a list of them."},
    {"report_to", report_to, METH_O, "report_to(f): long calls of this thread call f(done, total); None: no more."},
    {nullptr, nullptr, 0, nullptr},
};
PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace
}  // namespace pygen

PyMODINIT_FUNC PyInit__C() { return PyModule_Create(&pygen::definition); }
