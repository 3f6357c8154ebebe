"""What Triton Inference Server needs to serve an engine, as values: nothing is read or written here.

::

    <repository>/
        <name>/                       the engine
            config.pbtxt              inference.ModelConfig in text form
            labels.txt                one label a line, where the model has labels
            warmup/images             golden input, raw
            1/model.onnx|model.plan   the engine, byte for byte
            1/manifest.json           the bundle's, which names the file above by digest
            1/interface.json          input contract, first dimension and classes, which all versions have in common
        <name>_preprocess/            for float32 contracts: uint8 pixels to the normalised tensor
        <name>_ensemble/              for float32 contracts: the two above in one request

Fields mean what ``model_config.proto`` of triton-inference-server/common says, and a repository is laid out as "Model
Repository" in Triton's user guide asks. In a version's folder, a backend reads the file that the configuration names,
and no other.
"""
