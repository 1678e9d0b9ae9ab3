import pytest
import torch
from glocal.train.roi_align import roi_align_matmul, roi_align_operator


@pytest.mark.parametrize("size", [1, 4, 7])
@pytest.mark.parametrize("shape", [(6, 9), (14, 14), (1, 3)])
def test_both_forms_agree(size, shape):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 5, *shape, generator=generator)
    corners = torch.rand(2, 8, 2, 2, generator=generator).sort(dim=2).values
    boxes = torch.cat([corners.flatten(2), torch.tensor([[[0, 0, 1, 1], [0.0, 0, 0, 0]]]).expand(2, 2, 4)], 1)
    image = torch.arange(2)[:, None].expand(2, 10).flatten()
    expected = roi_align_operator(features, boxes.flatten(0, 1), image, size)
    torch.testing.assert_close(roi_align_matmul(features, boxes, size), expected, atol=1e-5, rtol=1e-5)


def test_a_box_around_one_cell_reads_that_cell():
    features = torch.zeros(1, 1, 4, 8)
    features[0, 0, 2, 5] = 1.0
    box = torch.tensor([[5 / 8, 2 / 4, 6 / 8, 3 / 4]])
    pooled = roi_align_operator(features, box, torch.zeros(1, dtype=torch.int64), 1)
    # Two samples a bin and axis, a quarter of a cell off its centre, so weight 3/4 on each axis.
    assert pooled.item() == pytest.approx(0.75**2)
