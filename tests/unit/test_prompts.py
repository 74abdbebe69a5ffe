import pytest

from models.prompts import MAX_POINTS, PointPrompt, PromptKind, TextPrompt, point_tensors, prompt_kind


def test_points_are_padded_to_a_fixed_shape() -> None:
    tensors = point_tensors([(3.5, 4.0)], [0])
    assert tensors["points"].shape == (MAX_POINTS, 2)
    assert tensors["points"][0].tolist() == [3.5, 4.0]
    assert tensors["point_labels"].tolist() == [0] + [-1] * (MAX_POINTS - 1)


@pytest.mark.parametrize(
    ("points", "labels", "message"),
    [
        (((0.0, 0.0),), (1, 1), "1 points and 2 labels"),
        ((), (), "got 0 points"),
        (((0.0, 0.0),) * (MAX_POINTS + 1), (1,) * (MAX_POINTS + 1), f"got {MAX_POINTS + 1} points"),
        (((0.0, 0.0),), (2,), r"got point labels \[2\]"),
    ],
)
def test_wrong_clicks_are_refused(
    points: tuple[tuple[float, float], ...], labels: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        PointPrompt(points, labels)


def test_kinds() -> None:
    assert prompt_kind(None) is PromptKind.NONE
    assert prompt_kind(TextPrompt("a cat")) is PromptKind.TEXT
    assert prompt_kind(PointPrompt(((1.0, 2.0),), (1,))) is PromptKind.POINTS
