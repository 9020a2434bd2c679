"""What holds for every transform."""

# ruff: noqa: S101

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest

from strategies.transform import Domain, Opens, Round, Transform, chain
from strategies.update import Arrays, ExactSum, FixedPoint, InvalidUpdate, Update
from strategies.work import check_template, template_of

SHAPES = ((3, 4), (3,), (1, 1))
SIZES = (0.0, 1e-3, 1.0, 100.0)


class TransformContract:
    """Subclass it as `class TestMyTransform(TransformContract)` and set `transform`; override what does not fit."""

    transform: ClassVar[Transform]
    before: ClassVar[tuple[Transform, ...]] = ()
    """Steps to its left that it cannot do without, such as a clip before noise."""
    pure: ClassVar[bool] = True
    """False where `encode` draws from the operating system."""
    tolerance: ClassVar[float] = 1e-9
    """Of a decoded sum, relative to the largest value in it."""

    def updates(self, dtype: type[np.floating]) -> Sequence[Update]:
        """Updates of several clients in one round, among them a zero one."""
        rng = np.random.default_rng(0)
        return [
            Update(
                tuple((size * rng.normal(size=shape)).astype(dtype) for shape in SHAPES),
                (f"{index:02}",),
                num_examples=10 * index + 1,
            )
            for index, size in enumerate(SIZES)
        ]

    def contribution(self, update: Update, info: Round) -> Arrays:
        """What an opened sum holds of one update, times its weight.

        Right for a step that can be opened reply by reply. Override it where only the sum can be opened.
        """
        encoded, _ = self.transform.encode(update, (), info)
        if self.transform.opens is Opens.SUM:
            return update.arrays
        return self.transform.decode_each(encoded, info).arrays

    # ---------------------------------------------------------------------------------------------- fixtures

    @pytest.fixture
    def info(self) -> Round:
        """A round in which the transform has announced what it announces."""
        info = Round(1, 7, FixedPoint(20))
        return replace(info, public=self.transform.announce(self.transform.begin(), info))

    @pytest.fixture(params=[np.float64, np.float32], ids=["float64", "float32"])
    def received(self, request: pytest.FixtureRequest) -> Sequence[Update]:
        """Updates that nothing can write to."""
        updates = self.updates(request.param)
        for array in (array for update in updates for array in update.arrays):
            array.setflags(write=False)
        return updates

    # ------------------------------------------------------------------------------------------------- encode

    def test_chain_takes_it_beside_what_it_needs(self) -> None:
        steps = (*self.before, self.transform)
        assert chain(*steps).transforms == steps

    def test_encode_writes_to_nothing_and_is_pure(self, received: Sequence[Update], info: Round) -> None:
        for update in received:
            first, state = self.transform.encode(update, (), info)
            for array in state:
                array.setflags(write=False)
            followed = [self.transform.encode(update, state, info) for _ in range(2)]
            if self.pure:
                _same(first.arrays, self.transform.encode(update, (), info)[0].arrays)
                _same(followed[0][0].arrays, followed[1][0].arrays)
                _same(followed[0][1], followed[1][1])

    def test_encode_keeps_what_an_update_says_of_itself(self, received: Sequence[Update], info: Round) -> None:
        for update in received:
            encoded, _ = self.transform.encode(update, (), info)
            assert encoded.clients == update.clients
            assert encoded.num_examples == update.num_examples
            assert encoded.metric_sums == update.metric_sums

    def test_state_has_as_many_arrays_as_it_says_and_they_keep_their_shapes(
        self, received: Sequence[Update], info: Round
    ) -> None:
        for update in received:
            _, state = self.transform.encode(update, (), info)
            assert len(state) == self.transform.num_state_arrays
            _, later = self.transform.encode(update, state, replace(info, number=2, seed=8))
            assert template_of(later) == template_of(state)

    def test_no_client_weighs_more_than_the_bound(self, received: Sequence[Update], info: Round) -> None:
        for update in received:
            weight = self.transform.encode(update, (), info)[0].weight
            assert 1 <= weight <= self.transform.max_weight(update.num_examples, update.weight)

    def test_what_travels_is_of_the_domain_it_gives_and_no_wider_than_what_came(
        self, received: Sequence[Update], info: Round
    ) -> None:
        for update in received:
            width = update.arrays[0].dtype.itemsize
            for array in self.transform.encode(update, (), info)[0].arrays:
                if self.transform.gives is Domain.RING:
                    assert np.issubdtype(array.dtype, np.integer)
                elif self.transform.gives is Domain.REAL and np.issubdtype(array.dtype, np.floating):
                    assert array.dtype.itemsize <= width
                    assert np.isfinite(array).all()

    def test_announcing_is_pure_and_gives_scalars(self, info: Round) -> None:
        state = self.transform.begin()
        public = self.transform.announce(state, info)
        assert public == (self.transform.announce(state, info) if self.pure else public)
        assert all(isinstance(value, bool | int | float | str | bytes) for value in public.values())

    # ------------------------------------------------------------------------------------------------- decode

    def test_an_opened_update_has_the_shapes_and_dtypes_of_the_one_that_was_sent(
        self, received: Sequence[Update], info: Round
    ) -> None:
        for update, opened in self._opened(received, info):
            check_template(opened.arrays, template_of(update.arrays))
            assert all(np.isfinite(array).all() for array in opened.arrays)

    def test_an_opened_update_keeps_to_the_bound(self, received: Sequence[Update], info: Round) -> None:
        """Both where nothing is known of the update before, and where its norm is."""
        for update, opened in self._opened(received, info):
            for bound in (self.transform.bound(None), self.transform.bound(_norm(update))):
                assert bound is None or _norm(opened) <= bound * (1 + 1e-6)

    def test_a_zero_update_stays_zero_unless_noise_is_added(self, received: Sequence[Update], info: Round) -> None:
        for update, opened in self._opened(received, info):
            if not any(array.any() for array in update.arrays) and self.transform.privacy_event() is None:
                assert not any(array.any() for array in opened.arrays)

    def test_what_is_no_encoding_costs_one_client_and_not_the_run(
        self, received: Sequence[Update], info: Round
    ) -> None:
        if self.transform.opens is not Opens.EACH:
            pytest.skip("it can be opened on the sum, where nothing of a single client is left to check")
        arrays = self.transform.encode(received[-1], (), info)[0].arrays
        for wrong in (
            (),
            arrays[:-1],
            (*arrays, np.zeros(3)),
            arrays[::-1],
            tuple(np.zeros(5, np.uint8) for _ in arrays),
            tuple(np.full(array.shape, np.nan) for array in arrays),
            tuple(array.reshape(-1)[:0] for array in arrays),
        ):
            with suppress(InvalidUpdate):
                self.transform.decode_each(replace(received[-1], arrays=wrong), info)

    def test_opening_the_sum_gives_the_sum_of_what_was_sent(self, received: Sequence[Update], info: Round) -> None:
        if self.transform.opens is Opens.EACH or self.transform.gives is Domain.CIPHER:
            pytest.skip("nothing is opened on an exact sum here")
        fold, weights = ExactSum(info.grid), []
        for update in received:
            encoded, _ = self.transform.encode(update, (), info)
            weights.append(encoded.weight)
            fold.add(encoded)
        total, state = self.transform.decode_sum(fold.total(), self.transform.begin(), info)
        assert len(state) == self.transform.num_server_arrays
        noise = self.transform.privacy_event()
        contributions = [self.contribution(update, info) for update in received]
        for index, array in enumerate(total.arrays):
            parts = [weight * c[index].astype(np.float64) for weight, c in zip(weights, contributions, strict=True)]
            largest = max(float(np.abs(part).max()) for part in parts)
            rounding = len(parts) * 2.0 ** -(info.grid.fraction_bits + 1)
            allowed = rounding + self.tolerance * largest + (8 * noise.stddev if noise else 0.0)
            np.testing.assert_allclose(info.grid.to_float(array, 1.0), sum(parts), rtol=0, atol=allowed)

    def _opened(self, received: Sequence[Update], info: Round) -> list[tuple[Update, Update]]:
        """Each update and what the server sees of it, where it sees single updates."""
        if self.transform.opens is Opens.SUM:
            pytest.skip("only the sum can be opened")
        return [(u, self.transform.decode_each(self.transform.encode(u, (), info)[0], info)) for u in received]


def _norm(update: Update) -> float:
    return float(np.sqrt(sum(float(np.square(array, dtype=np.float64).sum()) for array in update.arrays)))


def _same(first: Arrays, second: Arrays) -> None:
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)
