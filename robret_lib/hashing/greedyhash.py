"""GreedyHash: a classifier looks at the binary code; its gradient passes through the sign as if it were not there."""

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from robret_lib.fields import check_count, check_number
from robret_lib.hashing.batch import Batch


class GreedyHash(nn.Module):
    """Cross-entropy of a linear classifier of ``sign u``, plus lambda times ``mean ||u| - 1|^3``.

    (Su et al., NeurIPS 2018.) Of several labels the first is the class; an image without any has none, and adds nothing
    to the cross-entropy (in CgAT's code it is one of the first class).

    Args:
        classes, bits: Of the classifier, at least 1 each.
        quantization: lambda.
        learned: Whether the classifier is trained. In CgAT's code it never is: the optimizer does not know of it.
    """

    def __init__(self, classes: int, bits: int, quantization: float = 0.1, learned: bool = True) -> None:
        super().__init__()
        check_count("classes", classes)
        check_count("bits", bits)
        check_number("quantization", quantization, least=0)
        self.quantization, self.learned = quantization, learned
        self.classifier = nn.Linear(bits, classes, bias=False).requires_grad_(learned)

    def forward(self, batch: Batch) -> Tensor:
        """Scalar."""
        codes = batch.codes
        binary = codes + (codes.sign() - codes).detach()
        classes, labeled = batch.labels, 1.0
        if classes.ndim == 2:
            classes, labeled = batch.labels.argmax(1), batch.multi_hot.amax(1)
        entropy = (labeled * cross_entropy(self.classifier(binary), classes, reduction="none")).mean()
        return entropy + self.quantization * ((codes.abs() - 1).abs() ** 3).mean()
