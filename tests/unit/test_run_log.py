from pathlib import Path

from training.run_log import RunLog, read_log


def test_rows_are_read_back_as_they_were_logged(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "run")
    log.epoch("segmentation", 1, {"loss": 0.5, "iou": {"cat": 0.25}})
    log.epoch("segmentation", 2, {"loss": 0.25, "iou": {"cat": 0.5}})
    log.close()
    assert read_log(tmp_path / "run" / "log.csv") == [
        {"stage": "segmentation", "epoch": "1", "loss": "0.5", "iou/cat": "0.25"},
        {"stage": "segmentation", "epoch": "2", "loss": "0.25", "iou/cat": "0.5"},
    ]


def test_a_later_stage_may_measure_more(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log.epoch("reconstruction", 1, {"loss": 0.5, "validation_loss": 0.75})
    log.epoch("segmentation", 1, {"loss": 2.0, "mean_iou": 0.5})
    log.close()
    first, second = read_log(tmp_path / "log.csv")
    assert first == {"stage": "reconstruction", "epoch": "1", "loss": "0.5", "validation_loss": "0.75", "mean_iou": ""}
    assert second == {"stage": "segmentation", "epoch": "1", "loss": "2.0", "validation_loss": "", "mean_iou": "0.5"}


def test_a_repeated_epoch_stands_once(tmp_path: Path) -> None:
    for loss in (1.0, 2.0):
        log = RunLog(tmp_path)
        log.epoch("segmentation", 1, {"loss": loss})
        log.close()
    assert [row["loss"] for row in read_log(tmp_path / "log.csv")] == ["2.0"]


def test_a_process_that_is_not_the_first_writes_nothing(tmp_path: Path) -> None:
    RunLog(tmp_path / "run", enabled=False).epoch("segmentation", 1, {"loss": 1.0})
    assert not (tmp_path / "run").exists()
    assert read_log(tmp_path / "run" / "log.csv") == []
