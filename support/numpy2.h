// Found by Jittor's sources as pyjt/numpy.h before their own, which knows NumPy 1 only: they take the arrays of both.
// NumPy 2 has moved the size of an item in its descriptor of a type, PyArray_CopyInto in its table of functions, and
// what PyArray_CastScalarToCtype reads of a descriptor.
#pragma once
#include_next "pyjt/numpy.h"

namespace jittor {

inline int64 bytes_of_array(PyArray_Proxy* array) {
    int64 size = get_type_str(array).dsize();
    for (int i = 0; i < array->nd; i++) size *= array->dimensions[i];
    return size;
}

inline int copy_into(PyObject* to, PyObject* from) {
    return ((decltype(PyArray_CopyInto))PyArray_API[50])(to, from);  // in NumPy 1 called PyArray_MoveInto
}

inline int int_of_scalar(PyObject* scalar) {
    PyObjHolder number(PyNumber_Long(scalar));
    return (int)PyLong_AsLong(number.obj);
}

}  // namespace jittor

#define PyArray_Size(array) bytes_of_array(array)
#define PyArray_CopyInto(to, from) copy_into(to, from)
#define PyArray_CastScalarToCtype(scalar, to, type) (*(to) = int_of_scalar(scalar))
