"""What the OpenAPI document promises is kept, whatever is sent: schemathesis makes requests up from it."""

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from test_api import served

from geobacter_core.api.app import create_app
from geobacter_core.api.state import Service

__all__ = ["served"]
LOCAL = {"Host": "localhost"}
OPERATIONS = [
    "GET /health", "GET /ready", "GET /metrics", "GET /regions", "GET /model", "GET /embeddings", "POST /embeddings",
    "GET /similar", "POST /similar", "GET /interpolate", "GET /arithmetic", "GET /image", "GET /tile/{z}/{x}/{y}.png",
    "GET /cells/{region}/{z}/{x}/{y}.png",
]  # fmt: skip


@pytest.fixture(scope="module")
def operations(served):
    service = Service(served)
    service.look()  # not every request made up comes with a start of the server
    schema = schemathesis.openapi.from_asgi("/openapi.json", create_app(served, service=service), headers=LOCAL)
    return {operation.label: operation for operation in (found.ok() for found in schema.get_all_operations())}


def test_every_operation_is_documented(operations):
    assert sorted(operations) == sorted(OPERATIONS)


@pytest.mark.parametrize("name", OPERATIONS)
def test_no_answer_is_other_than_documented_and_none_is_a_fault(name, operations):
    @given(case=operations[name].as_strategy())
    @settings(max_examples=25, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    def check(case):
        case.call_and_validate(headers=LOCAL)

    check()
