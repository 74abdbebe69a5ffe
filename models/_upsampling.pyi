"""Types of _upsampling.pyx."""

import numpy as np
import numpy.typing as npt

_Floats = npt.NDArray[np.float32]
_Indices = npt.NDArray[np.intp]

def enlarge(
    scores: _Floats,
    rows_before: _Indices,
    row_weights: _Floats,
    columns_before: _Indices,
    column_weights: _Floats,
) -> _Floats: ...
def fill(
    scores: _Floats,
    margin: float,
    rows_before: _Indices,
    row_weights: _Floats,
    columns_before: _Indices,
    column_weights: _Floats,
) -> npt.NDArray[np.uint8]: ...
