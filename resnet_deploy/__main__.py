"""``python -m resnet_deploy``."""

from resnet_deploy.cli import main

main(prog_name="resnet-deploy")
