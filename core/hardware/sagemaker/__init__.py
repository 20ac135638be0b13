"""Jobs and batch transforms of SageMaker."""
