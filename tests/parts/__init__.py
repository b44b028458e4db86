"""The parts around the dispatcher that tests, demo and benchmarks run against; none imports pytest.

- broker.py: a private RabbitMQ node (real)
- proxy.py: a TCP proxy that cuts, refuses and stalls connections to any server
- receiver.py: the backend, a real HTTP server that records every PATCH
- api_server.py: an API server that behaves as Kubernetes 1.36 does, on a socket; made of kube_*.py
- job_controller.py: the Job controller, scheduler and kubelet of that server; made of kubelet.py, *_states.py
  and job_automation.py
- control_plane.py: a real control plane of Kubernetes from the programs in KUBEBUILDER_ASSETS
- cluster.py: a namespace in one of the three (KUBECONFIG, control plane, API server of the tests), whose pods
  node_stand_in.py plays, or real_pods.py has its nodes run
- plain_api.py: asks any of them without the official client
- http_server.py, ports.py, kubeconfig.py, waiting.py: what the others share
"""
