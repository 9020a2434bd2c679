"""Every step that compresses keeps the contract of all transforms, alone and around others."""

from dataclasses import replace

import numpy as np
import pytest

from fl_app.contracts import TransformContract
from strategies.transform import Round
from strategies.transforms.cast import Cast
from strategies.transforms.clipping import Clip
from strategies.transforms.each_reply import each_reply
from strategies.transforms.entropy_coding import EntropyCoding
from strategies.transforms.feedback import with_feedback
from strategies.transforms.flatten import Flatten
from strategies.transforms.prune import MASK, Prune
from strategies.transforms.quantize import Quantize
from strategies.transforms.rotate import Rotate
from strategies.transforms.sparsify import RandomK, TopK
from strategies.update import FixedPoint
from strategies.work import template_of


class CompressionContract(TransformContract):
    """The same where a step has to know the template of what it takes."""

    @pytest.fixture
    def info(self, received) -> Round:
        info = Round(1, 7, FixedPoint(20), template=template_of(received[0].arrays))
        return replace(info, public=self.transform.announce(self.transform.begin(), info))


class TestFlatten(CompressionContract):
    transform = Flatten()


class TestFloat16(CompressionContract):
    transform = Cast("float16")


class TestBfloat16(CompressionContract):
    transform = Cast("bfloat16")


class TestQuantize(CompressionContract):
    transform = Quantize(8)


class TestNearest(CompressionContract):
    transform = Quantize(4, rounding="nearest")


class TestSigns(CompressionContract):
    transform = Quantize(1, rounding="nearest")


class TestTwoLevels(CompressionContract):
    transform = Quantize(1, block=8)


class TestRotate(CompressionContract):
    transform = Rotate(2**8)
    tolerance = 1e-5  # a rotation in float32


class TestTopK(CompressionContract):
    transform = TopK(0.2)


class TestRandomK(CompressionContract):
    transform = RandomK(0.3)
    tolerance = 1e-6  # n / k in float32


class TestRandomKAsItIs(CompressionContract):
    transform = RandomK(0.3, scaled=False)


class TestEachReply(CompressionContract):
    transform = each_reply(Flatten(), Rotate(), Quantize(4), EntropyCoding())


class TestErrorFeedback(CompressionContract):
    transform = with_feedback(TopK(0.2), Quantize(8), EntropyCoding())


class TestClippedErrorFeedback(CompressionContract):
    transform = with_feedback(Clip(1.0), Flatten(), Rotate(), Quantize(2))


class TestEntropy(CompressionContract):
    transform = EntropyCoding()


class TestPaddedEntropy(CompressionContract):
    transform = EntropyCoding(padded=True)


class TestPrune(CompressionContract):
    transform = Prune()


class TestPruneWithAMask(CompressionContract):
    """In a later round, when something is pruned."""

    transform = Prune()

    @pytest.fixture
    def info(self, received) -> Round:
        mask = np.packbits(np.arange(16) % 3 == 0).tobytes()
        return Round(2, 7, FixedPoint(20), {MASK: mask}, template_of(received[0].arrays))
