# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""What takes the time in upsampling.py, in C: each function is one call that holds no interpreter lock.

Numpy takes sixty calls for a photo, and after each of them another thread may have the interpreter. Called by
upsampling.py, which does without where there was no compiler when petseg was installed.
"""

from libc.math cimport INFINITY
from libc.string cimport memset

import numpy as np

ctypedef unsigned char byte

cdef byte UNSURE = 255


cdef struct Axis:
    # Where the pixels of one axis lie on the grid, see upsampling.py.
    const Py_ssize_t *before
    const float *weights
    Py_ssize_t pixels


cdef struct Grid:
    # Scores [classes, height, width].
    const float *scores
    Py_ssize_t classes, height, width


def enlarge(
    const float[:, :, ::1] scores,
    const Py_ssize_t[::1] rows_before, const float[::1] row_weights,
    const Py_ssize_t[::1] columns_before, const float[::1] column_weights,
):
    """Every point of the resized scores: [K, h, w] float32 -> [K, len(rows), len(columns)]."""
    cdef Grid grid = Grid(&scores[0, 0, 0], scores.shape[0], scores.shape[1], scores.shape[2])
    cdef Axis rows = Axis(&rows_before[0], &row_weights[0], rows_before.shape[0])
    cdef Axis columns = Axis(&columns_before[0], &column_weights[0], columns_before.shape[0])
    enlarged = np.empty((grid.classes, rows.pixels, columns.pixels), np.float32)
    widened = np.empty((grid.height, columns.pixels), np.float32)
    cdef float[:, :, ::1] into = enlarged
    cdef float[:, ::1] between = widened
    with nogil:
        _enlarge(grid, rows, columns, &between[0, 0], &into[0, 0, 0])
    return enlarged


def fill(
    const float[:, :, ::1] scores,
    float margin,
    const Py_ssize_t[::1] rows_before, const float[::1] row_weights,
    const Py_ssize_t[::1] columns_before, const float[::1] column_weights,
):
    """The class that wins at each pixel of the resized scores: [K, h, w] float32 -> [len(rows), len(columns)] uint8.

    margin: a lead that rounding may turn.
    """
    cdef Grid grid = Grid(&scores[0, 0, 0], scores.shape[0], scores.shape[1], scores.shape[2])
    cdef Axis rows = Axis(&rows_before[0], &row_weights[0], rows_before.shape[0])
    cdef Axis columns = Axis(&columns_before[0], &column_weights[0], columns_before.shape[0])
    mask = np.empty((rows.pixels, columns.pixels), np.uint8)
    winners = np.empty((grid.height, grid.width), np.uint8)
    scratch = np.empty((3, grid.width), np.float32)
    begins = np.searchsorted(columns_before, np.arange(grid.width + 1)).astype(np.intp, copy=False)
    cdef byte[:, ::1] into = mask
    cdef byte[:, ::1] at_points = winners
    cdef float[:, ::1] lines = scratch
    cdef const Py_ssize_t[::1] cells = begins
    with nogil:
        _find_winners(grid, margin, &lines[0, 0], &at_points[0, 0])
        _fill(grid, rows, columns, &cells[0], &at_points[0, 0], &into[0, 0])
    return mask


cdef void _enlarge(Grid grid, Axis rows, Axis columns, float *widened, float *into) noexcept nogil:
    # First each of the grid's rows, then between rows: the order in which upsampling.py blends.
    cdef Py_ssize_t k, y, x, left
    cdef const float *line
    cdef const float *above
    cdef const float *below
    cdef float weight
    for k in range(grid.classes):
        for y in range(grid.height):
            line = grid.scores + (k * grid.height + y) * grid.width
            for x in range(columns.pixels):
                left = columns.before[x]
                widened[y * columns.pixels + x] = _blend(line[left], line[_after(left, grid.width)], columns.weights[x])
        for y in range(rows.pixels):
            above = widened + rows.before[y] * columns.pixels
            below = widened + _after(rows.before[y], grid.height) * columns.pixels
            weight = rows.weights[y]
            for x in range(columns.pixels):
                into[x] = _blend(above[x], below[x], weight)
            into += columns.pixels


cdef void _find_winners(Grid grid, float margin, float *scratch, byte *winners) noexcept nogil:
    # The class that wins at each point, or UNSURE. In floats throughout, which the compiler turns into vectors.
    cdef Py_ssize_t k, y, x
    cdef float *best = scratch
    cdef float *second = scratch + grid.width
    cdef float *winner = scratch + 2 * grid.width
    cdef const float *line
    cdef float score, lesser
    for y in range(grid.height):
        line = grid.scores + y * grid.width
        for x in range(grid.width):
            best[x] = line[x]
            second[x] = -INFINITY
            winner[x] = 0
        for k in range(1, grid.classes):
            line = grid.scores + (k * grid.height + y) * grid.width
            for x in range(grid.width):
                score = line[x]
                lesser = score if score < best[x] else best[x]
                second[x] = lesser if lesser > second[x] else second[x]
                winner[x] = <float>k if score > best[x] else winner[x]
                best[x] = score if score > best[x] else best[x]
        for x in range(grid.width):
            winners[y * grid.width + x] = <byte>winner[x] if best[x] > second[x] + margin else UNSURE


cdef void _fill(
    Grid grid, Axis rows, Axis columns, const Py_ssize_t *begins, const byte *winners, byte *mask
) noexcept nogil:
    # begins: for each of the grid's columns, and for its end, the first pixel at or behind it.
    cdef Py_ssize_t first = 0, end, y, x, cell, start
    cdef const byte *above
    cdef const byte *below
    cdef byte winner
    while first < rows.pixels:
        end = first + 1
        while end < rows.pixels and rows.before[end] == rows.before[first]:
            end += 1  # rows of pixels between the same two rows of points
        above = winners + rows.before[first] * grid.width
        below = winners + _after(rows.before[first], grid.height) * grid.width
        cell = 0
        while cell < grid.width:
            start, winner = cell, _find_cell(above, below, cell, grid.width)
            cell += 1
            while cell < grid.width and _find_cell(above, below, cell, grid.width) == winner:
                cell += 1
            for y in range(first, end):
                if winner != UNSURE:
                    memset(mask + y * columns.pixels + begins[start], winner, begins[cell] - begins[start])
                    continue
                for x in range(begins[start], begins[cell]):
                    mask[y * columns.pixels + x] = _find_winner(grid, rows, columns, y, x)
        first = end


cdef inline byte _find_cell(const byte *above, const byte *below, Py_ssize_t cell, Py_ssize_t width) noexcept nogil:
    # The class that wins in a whole cell, or UNSURE; at the right edge it has no far side.
    cdef Py_ssize_t right = _after(cell, width)
    cdef byte winner = above[cell]
    return winner if above[right] == winner and below[cell] == winner and below[right] == winner else UNSURE


cdef inline byte _find_winner(Grid grid, Axis rows, Axis columns, Py_ssize_t y, Py_ssize_t x) noexcept nogil:
    # The class that wins at one pixel, the first of equals.
    cdef const float *above = grid.scores + rows.before[y] * grid.width
    cdef const float *below = grid.scores + _after(rows.before[y], grid.height) * grid.width
    cdef Py_ssize_t k, left = columns.before[x], right = _after(left, grid.width)
    cdef float score, best = 0, weight = columns.weights[x]
    cdef byte winner = 0
    for k in range(grid.classes):
        score = _blend(
            _blend(above[left], above[right], weight), _blend(below[left], below[right], weight), rows.weights[y]
        )
        if k == 0 or score > best:
            winner, best = <byte>k, score
        above += grid.height * grid.width
        below += grid.height * grid.width
    return winner


cdef inline Py_ssize_t _after(Py_ssize_t before, Py_ssize_t points) noexcept nogil:
    # The grid point behind another one; the last has none behind it and stands for it.
    return before + 1 if before + 1 < points else before


cdef inline float _blend(float before, float after, float weight) noexcept nogil:
    return before + weight * (after - before)
