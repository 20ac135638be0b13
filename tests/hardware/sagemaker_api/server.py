"""HTTP on the loopback: what AWS's clients ask of SageMaker and CloudWatch, and what those answer."""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from sagemaker_api.machines import Job, Machines
from sagemaker_api.shapes import AwsError, check_request

Json = dict[str, Any]


class FakeSageMaker(Machines):
    """The server. Its public fields steer it; `address` is where clients find it.

    Attributes:
        quota: How many machines of a type may run at once; None: any number.
        faults: Answers, as status and code, for the next requests, whatever they are.
        page: How many events a page of the log holds.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, Json]] = []
        self.models: dict[str, Json] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def reset(self) -> None:
        """See Machines."""
        super().reset()
        self.quota: int | None = None
        self.faults: list[tuple[int, str]] = []
        self.page = 1000

    def close(self) -> None:
        """See Machines."""
        self._server.shutdown()
        self._server.server_close()
        super().close()

    def environment(self) -> dict[str, str]:
        """What leads AWS's clients here."""
        return {
            "AWS_ENDPOINT_URL_SAGEMAKER": self.address,
            "AWS_ENDPOINT_URL_CLOUDWATCH_LOGS": self.address,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "eu-central-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }

    # The calls.

    def answer(self, target: str, asked: Json) -> Json:
        with self.lock:
            self.calls.append((target.partition(".")[2], asked))
            if self.faults:
                status, code = self.faults.pop(0)
                raise AwsError(code, f"{code} was asked for", status)
        service, _, operation = target.partition(".")
        found: Callable[[Json], Json] | None = getattr(self, f"_{operation}", None)
        if found is None:
            raise AwsError("UnknownOperationException", f"{target} is not known here")
        check_request("sagemaker" if service == "SageMaker" else "logs", operation, asked)
        with self.lock:
            return found(asked)

    def _CreateTrainingJob(self, asked: Json) -> Json:
        if asked.get("EnableManagedSpotTraining"):
            stopping = asked["StoppingCondition"]
            if stopping.get("MaxWaitTimeInSeconds", 0) < stopping["MaxRuntimeInSeconds"]:
                raise AwsError(
                    "ValidationException", "MaxWaitTimeInSeconds must be equal or greater than MaxRuntime"
                )
        return self._create("Training", asked)

    def _CreateProcessingJob(self, asked: Json) -> Json:
        return self._create("Processing", asked)

    def _create(self, api: str, asked: Json) -> Json:
        name = asked[f"{api}JobName"]
        if (api, name) in self.jobs:
            raise AwsError(
                "ResourceInUse",
                f"{api} job names must be unique within an AWS account and region, and a {api.lower()} job with this"
                f" name already exists ({name})",
            )
        job = Job(api, name, asked)
        running = sum(one.status == "InProgress" for one in self.jobs.values())
        if self.quota is not None and running + job.machines["InstanceCount"] > self.quota:
            raise AwsError(
                "ResourceLimitExceeded",
                f"The account-level service limit '{job.machines['InstanceType']} for {api.lower()} job usage' is"
                f" {self.quota} Instances, with current utilization of {running} Instances and a request delta of"
                f" {job.machines['InstanceCount']} Instances.",
            )
        self.take_in(job)
        return {f"{api}JobArn": f"arn:aws:sagemaker:eu-central-1:123456789012:{api.lower()}-job/{name}"}

    def _DescribeTrainingJob(self, asked: Json) -> Json:
        job = self._job("Training", asked["TrainingJobName"])
        told = {
            **{name: value for name, value in job.request.items() if name != "Tags"},
            "TrainingJobArn": f"arn:aws:sagemaker:eu-central-1:123456789012:training-job/{job.name}",
            "TrainingJobStatus": job.status,
            "SecondaryStatus": job.step,
            "SecondaryStatusTransitions": job.steps,
            "ModelArtifacts": {"S3ModelArtifacts": "s3://none"},
            "CreationTime": job.created,
            "LastModifiedTime": job.ended or time.time(),
            "TrainingStartTime": job.started,
            "TrainingEndTime": job.ended,
            "FailureReason": job.reason or None,
        }
        if job.ended and job.started:
            told["TrainingTimeInSeconds"] = int(job.ended - job.started)
            told["BillableTimeInSeconds"] = math.ceil(job.worked)
        return {name: value for name, value in told.items() if value is not None}

    def _DescribeProcessingJob(self, asked: Json) -> Json:
        job = self._job("Processing", asked["ProcessingJobName"])
        told = {
            **{name: value for name, value in job.request.items() if name != "Tags"},
            "ProcessingJobArn": f"arn:aws:sagemaker:eu-central-1:123456789012:processing-job/{job.name}",
            "ProcessingJobStatus": job.status,
            "CreationTime": job.created,
            "LastModifiedTime": job.ended or time.time(),
            "ProcessingStartTime": job.started,
            "ProcessingEndTime": job.ended,
            "FailureReason": job.reason or None,
        }
        return {name: value for name, value in told.items() if value is not None}

    def _job(self, api: str, name: str) -> Job:
        if (api, name) not in self.jobs:
            words = (
                "Requested resource not found."
                if api == "Training"
                else f"Could not find job with name {name}"
            )
            raise AwsError("ValidationException", words)
        return self.jobs[(api, name)]

    def _StopTrainingJob(self, asked: Json) -> Json:
        return self._stop(self._job("Training", asked["TrainingJobName"]))

    def _StopProcessingJob(self, asked: Json) -> Json:
        return self._stop(self._job("Processing", asked["ProcessingJobName"]))

    def _stop(self, job: Job) -> Json:
        if job.status not in ("InProgress", "Stopping"):
            raise AwsError(
                "ValidationException", f"The request was rejected because the job is in status {job.status}."
            )
        job.status, job.told = "Stopping", "stop"
        return {}

    def _CreateModel(self, asked: Json) -> Json:
        if asked["ModelName"] in self.models:
            raise AwsError(
                "ValidationException", f"Cannot create already existing model {asked['ModelName']!r}."
            )
        self.models[asked["ModelName"]] = asked
        return {"ModelArn": f"arn:aws:sagemaker:eu-central-1:123456789012:model/{asked['ModelName']}"}

    def _CreateTransformJob(self, asked: Json) -> Json:
        """Transforms run nothing here: they go on until they are stopped."""
        name = asked["TransformJobName"]
        if asked["ModelName"] not in self.models:
            raise AwsError("ValidationException", f"Could not find model {asked['ModelName']!r}.")
        if ("Transform", name) in self.jobs:
            raise AwsError("ResourceInUse", f"Job name must be unique, and {name} already exists.")
        self.jobs[("Transform", name)] = job = Job("Transform", name, asked)
        job.enters("InProgress")
        job.started = time.time()
        return {"TransformJobArn": f"arn:aws:sagemaker:eu-central-1:123456789012:transform-job/{name}"}

    def _DescribeTransformJob(self, asked: Json) -> Json:
        job = self._job("Transform", asked["TransformJobName"])
        told = {
            **{name: value for name, value in job.request.items() if name != "Tags"},
            "TransformJobArn": f"arn:aws:sagemaker:eu-central-1:123456789012:transform-job/{job.name}",
            "TransformJobStatus": job.status,
            "CreationTime": job.created,
            "TransformStartTime": job.started,
        }
        return {**told, **({"TransformEndTime": job.ended} if job.ended else {})}

    def _StopTransformJob(self, asked: Json) -> Json:
        job = self._job("Transform", asked["TransformJobName"])
        self._stop(job)
        self.ends(job, "Stopped")
        return {}

    def _FilterLogEvents(self, asked: Json) -> Json:
        if asked["logGroupName"] not in self.events:
            raise AwsError("ResourceNotFoundException", "The specified log group does not exist.")
        found = [
            event
            for event in self.events[asked["logGroupName"]]
            if event["logStreamName"].startswith(asked.get("logStreamNamePrefix", ""))
            and event["timestamp"] >= asked.get("startTime", 0)
        ]
        start = int(asked.get("nextToken", 0))
        following = {"nextToken": str(start + self.page)} if len(found) > start + self.page else {}
        return {"events": found[start : start + self.page], "searchedLogStreams": [], **following}


def _handler(fake: FakeSageMaker) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
            try:
                if "Authorization" not in self.headers:
                    raise AwsError("MissingAuthenticationTokenException", "Missing Authentication Token", 403)
                status, told = 200, fake.answer(self.headers["X-Amz-Target"], asked)
            except AwsError as error:
                status, told = error.status, {"__type": error.code, "message": error.message}
            body = json.dumps(told).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/x-amz-json-1.1")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler
