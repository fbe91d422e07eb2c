"""Features of a frozen encoder: computed once, the same as if computed again."""

import torch

from policies.nn.recall import Recall
from policies.nn.vision import ViT


def test_a_picture_is_encoded_once_and_equal_ones_together():
    recall, encoded = Recall(10), []

    def encode(images):
        encoded.append(len(images))
        return images.mean((1, 2)), images.flatten(2)

    images = torch.randn(3, 4, 4, 3)[[0, 1, 0, 2, 1]]
    for _ in range(2):
        cls, patches = recall(images, encode)
        assert torch.equal(cls, images.mean((1, 2)))
        assert torch.equal(patches, images.flatten(2))
    shifted = images.roll(1, 1)
    assert torch.equal(recall(shifted, encode)[1], shifted.flatten(2))
    assert torch.equal(recall(images.bfloat16(), encode)[1], images.bfloat16().flatten(2))
    assert encoded == [3, 3, 3]


def test_the_oldest_are_forgotten_beyond_the_capacity():
    recall, encoded = Recall(2), []

    def encode(images):
        encoded.append(len(images))
        return images.flatten(1), images

    images = torch.randn(4, 2, 2, 3)
    for rows in ([0], [1], [2], [1, 2], [0], [0, 1, 2, 3]):
        assert torch.equal(recall(images[rows], encode)[1], images[rows])
    assert encoded == [1, 1, 1, 1, 2]


def test_an_encoder_remembers_while_training_alone_and_saves_nothing_of_it():
    torch.manual_seed(0)
    plain, recalling = ViT(16, 8, 8, 1, 2), ViT(16, 8, 8, 1, 2, remember=5)
    recalling.load_state_dict(plain.state_dict())
    images = torch.randn(3, 16, 16, 3)
    expected = plain(images, None)
    calls = []
    recalling.embed.register_forward_hook(lambda m, inputs, out: calls.append(len(inputs[0])))
    for _ in range(2):
        for one, two in zip(recalling.train()(images, None), expected, strict=True):
            torch.testing.assert_close(one, two, atol=1e-6, rtol=0)
    assert calls == [3]
    recalling.eval()(images, None)
    assert calls == [3, 3]
