import timm
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from common.flops import counted_flops


def test_flops_are_two_for_every_multiplication():
    """A linear layer of 192 features and 4 classes on a patch projection of 3 x 16 x 16, by hand."""
    network = timm.create_model(
        "vit_tiny_patch16_224", num_classes=4, img_size=32, depth=1, class_token=False, global_pool="avg"
    ).eval()
    tokens, width, heads = 4, 192, 3
    layers = tokens * (3 * 256 * width + width * 3 * width + width * width + 2 * width * 4 * width)
    attention = 2 * heads * tokens * tokens * (width // heads)
    assert counted_flops(network, (3, 32, 32)) == 2 * (layers + attention + 4 * width)


class Attended(nn.Module):
    """Attention of 2 heads over 5 tokens of 7 channels, which an image (2, 5, 7) holds."""

    def forward(self, images: Tensor) -> Tensor:
        return scaled_dot_product_attention(images, images, images)


def test_attention_counts_as_its_two_products_also_where_torch_fuses_them():
    assert counted_flops(Attended(), (2, 5, 7)) == 2 * 2 * (2 * 5 * 5 * 7)
