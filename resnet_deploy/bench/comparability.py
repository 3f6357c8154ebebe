"""Whether two runs may be compared: what differs between them that is not the engines."""

from resnet_deploy import environment
from resnet_deploy.bench.records import BenchRecord, DatasetRecord


def differences(old: BenchRecord, new: BenchRecord) -> tuple[str, ...]:
    """Name each difference between the conditions of two runs that moves speed or answers."""
    facts = [
        ("architecture", old.architecture, new.architecture),
        ("weights", old.weights_sha256[:12], new.weights_sha256[:12]),
        ("input contract", old.preprocess.digest[:12], new.preprocess.digest[:12]),
        ("threads", str(old.threads), str(new.threads)),
        ("images", _images(old.dataset), _images(new.dataset)),
    ]
    if old.governor and new.governor:  # records of schema 1 do not tell
        facts.append(("governor", old.governor, new.governor))
    found = [f"{name}: {before} against {after}" for name, before, after in facts if before != after]
    return (*found, *environment.differences(old.environment, new.environment))


def same_images(old: BenchRecord, new: BenchRecord) -> bool:
    """Whether both runs answered the same images, so that answers can be compared one by one."""
    return old.dataset is not None and new.dataset is not None and _images(old.dataset) == _images(new.dataset)


def _images(dataset: DatasetRecord | None) -> str:
    if dataset is None:
        return "synthetic"
    left_out = f", {len(dataset.skipped)} left out" if dataset.skipped else ""
    labels = "labelled" if dataset.labels else "unlabelled"
    return f"{dataset.name}, {dataset.images} {labels}, SHA-256 {dataset.digest[:12]}{left_out}"
