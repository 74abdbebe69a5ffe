"""What is told of a model that is served: plain data, for any process."""

from dataclasses import dataclass

from models.base import PromptMismatchError, check_prompt, describe_kind
from models.checkpoint import ModelCard
from models.prompts import Prompt, PromptKind
from service.errors import PromptMismatch


@dataclass(frozen=True)
class ModelFacts:
    """One model, its weights aside."""

    name: str
    card: ModelCard
    checkpoint: str
    """sha256 of its file, hexadecimal."""
    prompt_kind: PromptKind
    prompt_required: bool
    class_names: tuple[str, ...]
    image_size: int
    engine: str
    """What runs it, in words."""
    keeps_images: bool
    """Whether an image id may stand in for a photo."""

    @property
    def scores_bytes(self) -> int:
        """Memory of one photo's scores, [K, S, S] float32: more than its planes take."""
        return 4 * len(self.class_names) * self.image_size**2

    def check_prompt(self, prompt: Prompt) -> None:
        """Raise PromptMismatch for a prompt that the model does not take, whatever the photo."""
        try:
            check_prompt(prompt, self.prompt_kind, self.prompt_required)
        except PromptMismatchError as error:
            kind = describe_kind(self.prompt_kind)
            raise PromptMismatch(f"{error}; send {self.name} {kind}, or choose another model from /models") from error
