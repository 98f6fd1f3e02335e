"""EM-Adapt: the E-step that turns segmentation scores and image-level labels into labels of pixels.

With f_l(i) the score of class l at pixel i, Z the classes of the image and background, and b_l the bias of class l,

    label(i) = arg max over l in Z of f_l(i) + b_l

where the biases of an image are the least that give background a share rho_bg of its pixels and each of its classes a
share rho_fg. The M-step is cross-entropy on these labels (`rrm.method_tasks.EMAdaptTask`).

Source: Papandreou, Chen, Murphy and Yuille, "Weakly- and semi-supervised learning of a deep convolutional network for
semantic image segmentation", ICCV 2015, section 3.2, the variant with adaptive biases.
"""

from __future__ import annotations

import torch

from rrm.errors import RRMError
from rrm.labels import IGNORE

_MARGIN = 1e-9  # by which a raised class is above the others at the last pixel it gets, as a share of the largest score


def estimate_labels(
    logits: torch.Tensor,
    present: torch.Tensor,
    valid: torch.Tensor | None = None,
    background: float = 0.4,
    foreground: float = 0.2,
    passes: int = 5,
) -> torch.Tensor:
    """Most likely labels of pixels under the image-level labels, with adaptive biases.

    The order is that of the authors' published layer: in each pass background first, then each class of the image; a
    class that is arg max on fewer pixels than its share is raised just so far that it has it. Biases only rise, and
    start at 0. The authors draw the order of the classes; here it is that of the labels, so that the result is a
    function of the arguments. A class that is raised may take pixels from one that was raised before, which the next
    pass mends: one pass is enough for one class; several have theirs to a pixel or two after about five, where the
    shares leave room for all; the class raised last has its share whatever the others ask for.

    Args:
        logits: (N,C+1,H,W) float of any precision, background first, finite. Computed with in float64.
        present: (N,C); a class is among the image's labels where the value is above 0. An image without labels is
            background.
        valid: (N,H,W) bool, False marks padding, which is not counted; None: there is none.
        background: rho_bg, least share of an image's valid pixels that are background, 0..1.
        foreground: rho_fg, the same for each class of the image, 0..1.
        passes: how often at most the biases are gone through, >= 1; ends early once no class falls short.

    Returns:
        (N,H,W) int64: 0 background, 1..C class index + 1, 255 padding. Other classes than the image's never appear.
        Shares are rounded up to whole pixels and may be exceeded: pixels whose scores differ by the same amount go
        together, so a flat map has a single label.

    Raises:
        RRMError: a shape, dtype or number is wrong; the message names it.

    Example:
        >>> logits = torch.tensor([[[[9.0, 9.0, 9.0, 9.0, 9.0]], [[0.0, 1.0, 2.0, 3.0, 4.0]], [[99.0] * 5]]])
        >>> estimate_labels(logits, torch.tensor([[1, 0]])).tolist()
        [[[0, 0, 0, 0, 1]]]
    """
    _check(logits, present, valid, {"background": background, "foreground": foreground}, passes)
    allowed = torch.cat([torch.ones_like(present[:, :1], dtype=torch.bool), present > 0], dim=1).to(logits.device)
    counted = (torch.ones_like(logits[:, 0], dtype=torch.bool) if valid is None else valid.to(logits.device)).flatten(1)
    scores = logits.detach().double().flatten(2).masked_fill(~allowed[:, :, None], -torch.inf)
    shares = [background] + [foreground] * (logits.shape[1] - 1)
    with torch.autocast(logits.device.type, enabled=False):
        for _ in range(passes):
            raised = [_raise(scores, label, share, allowed, counted) for label, share in enumerate(shares)]
            if not any(raised):
                break
    labels = scores.argmax(dim=1).masked_fill(~counted, IGNORE)
    return labels.view(logits[:, 0].shape)


def _raise(scores: torch.Tensor, label: int, share: float, allowed: torch.Tensor, counted: torch.Tensor) -> bool:
    """Add to one class's scores (N,C+1,P), in place, what it lacks for its share; whether any image lacked it."""
    images = allowed[:, label].nonzero()[:, 0]
    if not len(images):
        return False
    own, mask = scores[images, label], counted[images]
    others = torch.cat([scores[images, :label], scores[images, label + 1 :]], dim=1).amax(dim=1)
    lead = (own - others).masked_fill(~mask, -torch.inf).sort(dim=1, descending=True).values
    wanted = (mask.sum(dim=1) * share - 1e-9).ceil().long()
    last = lead.gather(1, (wanted - 1).clamp(min=0)[:, None])
    margin = _MARGIN * (1 + own.abs().amax(dim=1, keepdim=True))
    lack = torch.where((wanted[:, None] > 0) & (last <= 0), margin - last, 0)
    scores[images, label] = own + lack
    return bool(lack.any())


def _check(
    logits: torch.Tensor, present: torch.Tensor, valid: torch.Tensor | None, shares: dict[str, float], passes: int
) -> None:
    if logits.ndim != 4 or logits.shape[1] < 2 or 0 in logits.shape[2:] or not logits.is_floating_point():
        raise RRMError(
            f"EM-Adapt logits: expected float (N,C+1,H,W) with C, H, W >= 1, got {logits.dtype} {tuple(logits.shape)}: "
            "pass a segmentation network's output"
        )
    expected = (len(logits), logits.shape[1] - 1)
    if tuple(present.shape) != expected:
        raise RRMError(
            f"EM-Adapt present: expected shape {expected}, got {tuple(present.shape)}: one value an image and class, "
            "without background"
        )
    if valid is not None and (valid.shape != logits[:, 0].shape or valid.dtype != torch.bool):
        raise RRMError(
            f"EM-Adapt valid: expected bool {tuple(logits[:, 0].shape)}, got {valid.dtype} {tuple(valid.shape)}: True "
            "marks real pixels"
        )
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise RRMError(f"EM-Adapt {name}: expected a share of 0 to 1, got {share!r}: the paper's are 0.4 and 0.2")
    if passes < 1:
        raise RRMError(f"EM-Adapt passes: expected an integer >= 1, got {passes!r}: use 5")
