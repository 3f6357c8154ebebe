from resnet_deploy.imagenet import imagenet_classes


def test_imagenet_classes() -> None:
    synsets, names = zip(*imagenet_classes(), strict=True)
    assert len(synsets) == len(set(names)) == 1000
    assert list(synsets) == sorted(set(synsets))
    assert all(name == name.strip() != "" for name in names)
    # Indices that anybody knows from the logits.
    assert [names[index] for index in (0, 1, 207, 281, 954, 999)] == [
        "tench", "goldfish", "golden retriever", "tabby", "banana", "toilet tissue",
    ]  # fmt: skip
