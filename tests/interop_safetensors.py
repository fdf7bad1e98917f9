"""Files written here are read by the safetensors package, and the reverse.

Usage: interop_safetensors.py libheadroom.so

The library is called through ctypes. Exits with 77 when numpy or safetensors is not installed.
"""

import ctypes
import os
import sys
import tempfile

try:
    import numpy as np
    from safetensors import safe_open
    from safetensors.numpy import load_file, save_file
except ImportError as missing:
    print(f"SKIP: {missing}")
    sys.exit(77)

MAX_DIMS = 4
# hr_dtype in order (tensor.h): the name in a file and NumPy's type, where there is one
DTYPES = [("F64", np.float64), ("F32", np.float32), ("F16", np.float16), ("BF16", None),
          ("F8_E4M3", None), ("F8_E5M2", None), ("I8", np.int8), ("U8", np.uint8), ("U8", None),
          ("U8", None), ("U8", None), ("I16", np.int16), ("I32", np.int32), ("I64", np.int64)]
I4 = 8  # the first of three nibble types


class Tensor(ctypes.Structure):
    _fields_ = [("dtype", ctypes.c_int), ("ndim", ctypes.c_int),
                ("shape", ctypes.c_int64 * MAX_DIMS), ("stride", ctypes.c_int64 * MAX_DIMS),
                ("data", ctypes.c_void_p), ("device", ctypes.c_int)]


class SynthOptions(ctypes.Structure):
    _fields_ = [("mode", ctypes.c_char_p), ("num_heads", ctypes.c_int32),
                ("num_kv_heads", ctypes.c_int32), ("head_dim", ctypes.c_int32),
                ("tokens", ctypes.c_int32), ("batch", ctypes.c_int32), ("layers", ctypes.c_int32),
                ("seed", ctypes.c_uint64), ("causal", ctypes.c_bool), ("rope", ctypes.c_bool)]


def load_library(path):
    library = ctypes.CDLL(path)
    for name, result in [("hr_last_error", ctypes.c_char_p), ("hr_safetensors_name", ctypes.c_char_p),
                         ("hr_safetensors_metadata", ctypes.c_char_p),
                         ("hr_safetensors_count", ctypes.c_int64),
                         ("hr_safetensors_tensor", Tensor)]:
        getattr(library, name).restype = result
    return library


def check(library, status):
    assert status == 0, library.hr_last_error().decode()


def view(dtype, shape, data):
    strides = [1] * len(shape)
    for i in reversed(range(len(shape) - 1)):
        strides[i] = strides[i + 1] * shape[i + 1]
    pad = [0] * (MAX_DIMS - len(shape))
    return Tensor(dtype, len(shape), (ctypes.c_int64 * MAX_DIMS)(*shape, *pad),
                  (ctypes.c_int64 * MAX_DIMS)(*strides, *pad), data)


def check_ours_read_by_theirs(library, path):
    payload = bytes(range(256))
    buffer = ctypes.create_string_buffer(payload, len(payload))
    writer = ctypes.c_void_p()
    check(library, library.hr_safetensors_writer_create(ctypes.byref(writer)))
    for i in range(len(DTYPES)):
        tensor = view(i, [3, 1, 4], ctypes.addressof(buffer))
        check(library, library.hr_safetensors_add(writer, b"tensor %d" % i, ctypes.byref(tensor)))
    empty, scalar = view(1, [0, 7], None), view(6, [], ctypes.addressof(buffer))
    check(library, library.hr_safetensors_add(writer, b"empty", ctypes.byref(empty)))
    check(library, library.hr_safetensors_add(writer, "scalär".encode(), ctypes.byref(scalar)))
    check(library, library.hr_safetensors_set_metadata(writer, b"key", b'"value"\n'))
    check(library, library.hr_safetensors_write(writer, path.encode()))
    library.hr_safetensors_writer_free(writer)

    with safe_open(path, "np") as file:
        assert file.metadata() == {"key": '"value"\n'}
        assert len(file.keys()) == len(DTYPES) + 2
        for i, (name, numpy_type) in enumerate(DTYPES):
            part = file.get_slice(f"tensor {i}")
            assert part.get_dtype() == name, (part.get_dtype(), name)
            nibbles = I4 <= i < I4 + 3
            assert part.get_shape() == [3, 1, 2 if nibbles else 4]
            if numpy_type:
                expected = np.frombuffer(payload, numpy_type, 12).reshape(3, 1, 4)
                assert file.get_tensor(f"tensor {i}").tobytes() == expected.tobytes()
        assert file.get_tensor("empty").shape == (0, 7)
        assert file.get_tensor("scalär").shape == ()


def check_synth(library, path):
    options = SynthOptions(b"mixed", 6, 3, 64, 50, 2, 2, 7, False, True)
    check(library, library.hr_synth_write(ctypes.byref(options), path.encode()))
    tensors = load_file(path)
    assert len(tensors) == 2 * 3 + 1
    assert tensors["cu_seqlens"].tolist() == [0, 25, 50]
    q, k, v = (np.empty((50, heads, 64), np.float32) for heads in (6, 3, 3))
    for layer in range(2):
        check(library, library.hr_synth_fill(ctypes.byref(options), layer, *(
            array.ctypes.data_as(ctypes.c_void_p) for array in (q, k, v))))
        for name, array in zip("qkv", (q, k, v)):
            assert np.array_equal(tensors[f"model.layers.{layer}.self_attn.{name}"], array)


def check_theirs_read_by_ours(library, path):
    rng = np.random.default_rng(1)
    arrays = {f"x{i}": rng.integers(0, 100, shape).astype(dtype)
              for i, dtype in enumerate(t for _, t in DTYPES if t)
              for shape in [[(3, 5, 7), (9,), (2, 0), ()][i % 4]]}
    save_file(arrays, path, metadata={"format": "np"})
    file = ctypes.c_void_p()
    check(library, library.hr_safetensors_open(path.encode(), ctypes.byref(file)))
    assert library.hr_safetensors_metadata(file, b"format") == b"np"
    assert library.hr_safetensors_count(file) == len(arrays)
    for i in range(len(arrays)):
        name = library.hr_safetensors_name(file, ctypes.c_int64(i)).decode()
        tensor = library.hr_safetensors_tensor(file, ctypes.c_int64(i))
        array = arrays.pop(name)
        assert DTYPES[tensor.dtype][1] == array.dtype
        assert tuple(tensor.shape[:tensor.ndim]) == array.shape
        assert ctypes.string_at(tensor.data, array.nbytes) == array.tobytes()
    library.hr_safetensors_close(file)


def main():
    library = load_library(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "interop.safetensors")
        for part in (check_ours_read_by_theirs, check_synth, check_theirs_read_by_ours):
            part(library, path)
            print(f"{part.__name__}: ok")


if __name__ == "__main__":
    main()
