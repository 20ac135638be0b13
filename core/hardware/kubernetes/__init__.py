"""Jobs of Kubernetes, and RayJobs of KubeRay."""
