"""Makes the file that a peer is fastest on: a GGUF again, in another of llama.cpp's types.

Run:  pip install 'edgellm[bench]';  python benchmarks/requantize.py SOURCE.gguf DESTINATION.gguf [Q4_0]
"""

import ctypes
import sys

import llama_cpp


def main(source: str, destination: str, kind: str = "Q4_0") -> None:
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    params.allow_requantize = True
    if llama_cpp.llama_model_quantize(source.encode(), destination.encode(), ctypes.byref(params)):
        sys.exit(f"llama.cpp could not write {destination}")


if __name__ == "__main__":
    main(*sys.argv[1:])
