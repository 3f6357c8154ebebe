"""Ranges for networks of which only the form counts."""

from resnet_deploy.pipeline.synthetic import synthetic_images
from resnet_deploy.quantize.calibrate import CalibrationSource, calibration_from, observe
from resnet_deploy.specs import CalibrationSpec


def calibration_on_noise(model, preprocess):
    histograms, images = observe(model, [synthetic_images(preprocess, 2)])
    source = CalibrationSource(
        dataset="generated",
        dataset_sha256="",
        images=images,
        preprocess_sha256=preprocess.digest,
        weights_sha256="",
        onnx_sha256="",
    )
    return calibration_from(histograms, CalibrationSpec(), source)
