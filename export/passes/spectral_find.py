"""Where a graph filters in the frequency domain: rfft2, perhaps a real mask or gain, irfft2, recognised by probing.

It does not matter who wrote the transforms, and how: a region is an rfft2 when it answers random pictures as one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import onnx
from numpy.typing import NDArray

from clusir.export.graph.probe import LinearGraph, Region

__all__ = [
    "Filter",
    "Refused",
    "find_filter",
    "find_fixed",
    "find_pair",
    "find_transform",
    "inverses",
    "is_gain",
    "spectra",
]

_TOLERANCE = 1e-4
_SAME = 1e-6  # two answers that differ by less are one and its rounding
_Found = tuple[Region, float]


class Refused(Exception):
    """Why a filter stays as it is; becomes a note."""


@dataclass(frozen=True)
class Filter:
    """``output`` = scale * basis^T (mask * (basis ``source``)), both [..., H, W].

    ``mask`` names a real value that broadcasts to [..., H, W//2+1, 1]; None where only a number, part of ``scale``,
    stands between the transforms. Or ``response`` [H, W] is the filter's answer to all frequencies, in the order of
    fft2; then mask is None and the scale 1.
    """

    source: str
    mask: str | None
    output: str
    scale: float
    response: NDArray[np.complex128] | None = None


def is_gain(shape: tuple[int, ...]) -> bool:
    """Whether a factor of this shape treats all bins of a spectrum [..., H, W//2+1, 2] alike: a number, or one for each
    channel."""
    return all(s == 1 for s in shape[-3:])


def find_filter(linear: LinearGraph, product: str) -> Filter | None:
    """The filter whose mask or gain is multiplied in ``product``, the output of a Mul; None where there is none.

    Raises Refused where a gain stands between two transforms, and others read a value on the way.
    """
    shape = linear.shape(product)
    if shape is None or len(shape) < 4 or shape[-1] != 2:
        return None
    inputs = linear.producer[product].input
    for spectrum, mask in ((inputs[0], inputs[1]), (inputs[1], inputs[0])):
        mask_shape = linear.shape(mask)
        if mask_shape is None or mask_shape[-1:] not in ((), (1,)):
            continue
        gain = is_gain(mask_shape)
        if gain and mask in linear.constants and linear.constants[mask].size == 1:
            continue  # a number: find_pair takes it into the scale, where it costs nothing
        if not gain and (len(linear.users[spectrum]) != 1 or product in linear.outputs):
            continue
        forward = find_transform(linear, spectrum, inverse=False)
        if forward is None:
            continue
        found = inverses(linear, product, linear.shapes[forward[0].sources[0]])
        if gain:
            return _undisturbed(linear, forward, [linear.producer[product]], mask, found)
        for inverse in found:
            if _read_only_by(linear, product, inverse[0].nodes):
                return _filter(linear, forward, mask, inverse)
    return None


def spectra(linear: LinearGraph) -> Iterator[tuple[str, bool]]:
    """Values with the shape of an rfft2 of some value of the graph, and whether their last axis is joined.

    [..., H, W//2+1, 2] or, joined, [..., H, 2*(W//2+1)]: where nothing stands between two transforms, the reshapes from
    one to the other and back are folded away. Asking for the shape first keeps probing off the thousands of other
    values of a large network.
    """
    known = set(linear.shapes.values())
    for value in [o for n in linear.graph.node for o in n.output]:
        shape = linear.shape(value) or ()
        if len(shape) >= 3 and not shape[-1] % 2 and _has_picture(known, shape[:-1], shape[-1] // 2):
            yield value, True
        if len(shape) >= 4 and shape[-1] == 2 and _has_picture(known, shape[:-2], shape[-2]):
            yield value, False


def _has_picture(known: set[tuple[int, ...]], lead: tuple[int, ...], bins: int) -> bool:
    return any((*lead, width) in known for width in (2 * bins - 2, 2 * bins - 1))


def find_pair(linear: LinearGraph, spectrum: str, joined: bool) -> Filter | None:
    """The irfft2 of the rfft2 ``spectrum``, with nothing or a number between; None where there is none.

    Raises Refused where others read a value on the way.
    """
    forward = find_transform(linear, spectrum, inverse=False, joined=joined)
    if forward is None:
        return None
    found = inverses(linear, spectrum, linear.shapes[forward[0].sources[0]], joined)
    return _undisturbed(linear, forward, [], None, found)


def find_fixed(linear: LinearGraph, spectrum: str, joined: bool) -> Filter | None:
    """The irfft2 of the rfft2 ``spectrum`` times any constants, complex ones too; None where there is none.

    Whatever constants stand between, the picture's way is a linear map that is the same at every place, so its answer
    to a point is all there is to know. Raises Refused where others read a value on the way, or where channels differ.
    """
    forward = find_transform(linear, spectrum, inverse=False, joined=joined)
    if forward is None:
        return None
    shape = linear.shapes[forward[0].sources[0]]
    for output in _behind(linear, spectrum, shape):
        region = next((r for r in linear.cuts(output) if r.sources == (spectrum,)), None)
        response = None if region is None else _response(linear, region, forward[1], shape)
        if region is not None and response is not None:
            found = _undisturbed(linear, forward, [], None, [(region, 1.0)])
            flat = response.reshape(-1, *shape[-2:])
            if np.abs(flat - flat[0]).max() > _SAME * np.abs(flat).max():
                raise Refused(
                    f"{output} keeps its complex spectrum: its multiplier differs between channels, and in the real "
                    "basis its constants would be four times as large for little speed"
                )
            return found and replace(found, scale=1.0, response=flat[0])
    return None


def _response(
    linear: LinearGraph, region: Region, scale: float, shape: tuple[int, ...]
) -> NDArray[np.complex128] | None:
    """fft2 of what the region makes of a point at the origin, if it does the same to points everywhere."""
    spectrum = linear.shapes[region.sources[0]]
    point = np.zeros(shape)
    point[..., 0, 0] = 1
    answers = []
    for picture in (point, np.random.default_rng(0).standard_normal(shape)):
        bins = scale * np.fft.rfft2(picture)
        feed = np.stack([bins.real, bins.imag], axis=-1).reshape(spectrum).astype(np.float32)
        answers.append((picture, linear.run(region, {region.sources[0]: feed}).astype(np.float64)))
    response = np.fft.fft2(answers[0][1][:1])
    picture, found = answers[1]
    expected = np.fft.ifft2(np.fft.fft2(picture) * response).real
    if not np.abs(found - expected).max() <= _TOLERANCE * np.abs(expected).max():
        return None
    return response


def _undisturbed(
    linear: LinearGraph,
    forward: _Found,
    between: list[onnx.NodeProto],
    mask: str | None,
    inverses: Iterable[_Found],
) -> Filter | None:
    """The filter with the first of ``inverses`` whose way from the picture nobody else reads; None if there are none.

    Raises Refused where others read a value on every way: the complex spectrum, or a part of it, would have to be
    computed all the same. Several ways: of a picture one row high, a part of its inverse is an inverse, too.
    """
    refusal = None
    for inverse in inverses:
        output, way = inverse[0].output, [*forward[0].nodes, *between, *inverse[0].nodes]
        made = [o for n in way for o in n.output if o and o != output]
        value = next((v for v in made if v in linear.outputs or not _read_only_by(linear, v, way)), None)
        if value is None:
            return _filter(linear, forward, mask, inverse)
        reader = f"{value}, on the way to it, is an output of the graph"
        reader = reader if value in linear.outputs else f"other nodes read {value}, on the way to it"
        refusal = refusal or Refused(f"{output} keeps its complex spectrum: {reader}")
    if refusal is not None:
        raise refusal
    return None


def _filter(linear: LinearGraph, forward: _Found, mask: str | None, inverse: _Found) -> Filter:
    source = forward[0].sources[0]
    height, width = linear.shapes[source][-2:]
    # The basis is orthonormal; an rfft2 and an irfft2 without a norm are not, together, by height * width.
    return Filter(source, mask, inverse[0].output, forward[1] * inverse[1] * height * width)


def _read_only_by(linear: LinearGraph, value: str, nodes: Iterable[onnx.NodeProto]) -> bool:
    inside = {id(n) for n in nodes}
    return all(id(u) in inside for u in linear.users.get(value, []))


def inverses(linear: LinearGraph, spectrum: str, picture: tuple[int, ...], joined: bool = False) -> Iterator[_Found]:
    """The irfft2 of ``spectrum``, times factors, of the shape ``picture``; the nearest first."""
    for output in _behind(linear, spectrum, picture):
        inverse = find_transform(linear, output, inverse=True, source=spectrum, joined=joined)
        if inverse is not None:
            yield inverse


def _behind(linear: LinearGraph, spectrum: str, shape: tuple[int, ...]) -> list[str]:
    """Values of a shape that linear operators reach from ``spectrum``, nearest first."""
    found, queue, seen = [], [spectrum], {spectrum}
    while queue and len(seen) < 64:
        for user in linear.users.get(queue.pop(0), []):
            if linear.linear_operands(user) is None:
                continue
            for value in user.output:
                if value not in seen:
                    seen.add(value)
                    queue.append(value)
                    if linear.shape(value) == shape:
                        found.append(value)
    return found


def find_transform(
    linear: LinearGraph, value: str, inverse: bool, source: str | None = None, joined: bool = False
) -> _Found | None:
    """The region behind ``value`` that is an rfft2 (irfft2) times a factor, and that factor."""
    shape = linear.shape(value)
    if shape is None or not linear.is_float(value):
        return None
    for region in linear.cuts(value):
        start = linear.shape(region.sources[0])
        if start is None or (source is not None and region.sources[0] != source) or len(region.nodes) < 2:
            continue
        picture, spectrum = (shape, start) if inverse else (start, shape)
        # Of two axes, the first may be the batch that is left open.
        if len(picture) < 3 or spectrum != _spectrum_shape(picture, joined):
            continue
        if (value in linear.open) != (region.sources[0] in linear.open):
            continue
        scale = _scale(linear, region, picture, inverse)
        if scale:
            return region, scale
    return None


def _scale(linear: LinearGraph, region: Region, picture: tuple[int, ...], inverse: bool) -> float:
    """The factor of an rfft2 (irfft2) that the region is, the same for all pictures; 0 where it is none.

    Tried three times: with pictures of one size, and with loud and faint ones, then faint and loud ones. What leaks
    from one picture into another shows in one of the two, however small the share.
    """
    run = linear.runner(region)
    feed = linear.random(region.sources)[region.sources[0]]
    lead = picture[:-2]
    exponents = np.random.default_rng(1).permutation(np.linspace(-6.0, 6.0, int(np.prod(lead))))
    exponents = exponents.reshape(*lead, *[1] * (feed.ndim - len(lead)))
    scale = 0.0
    for loudness in (np.zeros_like(exponents), exponents, -exponents):
        given = (feed * 10.0**loudness).astype(np.float32)
        found, given = run({region.sources[0]: given}), given.astype(np.float64)
        if inverse:
            given = given.reshape(_spectrum_shape(picture, joined=False))
            expected = np.fft.irfft2(given[..., 0] + 1j * given[..., 1], s=picture[-2:], norm="forward")
        else:
            bins = np.fft.rfft2(given)
            expected = np.stack([bins.real, bins.imag], axis=-1).reshape(found.shape)
        scale = scale or float((found * expected).sum() / (expected * expected).sum())
        rest = tuple(range(len(picture) - 2, found.ndim))
        error, size = np.abs(found - scale * expected).max(axis=rest), np.abs(expected).max(axis=rest)
        if not (error <= _TOLERANCE * abs(scale) * size).all():
            return 0.0
    return scale


def _spectrum_shape(picture: tuple[int, ...], joined: bool) -> tuple[int, ...]:
    bins = picture[-1] // 2 + 1
    return (*picture[:-1], 2 * bins) if joined else (*picture[:-1], bins, 2)
