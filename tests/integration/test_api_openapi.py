"""The description is valid OpenAPI 3.1, and real answers fit it."""

from __future__ import annotations

import jsonschema
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from cloche.domain.permissions import Permission
from tests.support.web import running_site


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    with running_site(tmp_path_factory.mktemp("home")) as running:
        yield running


@pytest.fixture(scope="module")
def described(site):
    return site.client().get("/openapi.json").json


def test_the_description_is_valid(described):
    assert described["openapi"].startswith("3.1")
    OpenAPIV31SpecValidator(described).validate()


def test_operation_ids_are_unique_and_permissions_named(described):
    operations = [operation for path in described["paths"].values() for operation in path.values()]
    names = [operation["operationId"] for operation in operations]
    assert len(names) == len(set(names))
    assert described["paths"]["/api/v1/jobs"]["post"]["x-permission"] == "job:submit"
    assert described["paths"]["/healthz"]["get"]["security"] == []
    assert {"password": []} in described["paths"]["/api/v1/tokens"]["post"]["security"]


def test_the_description_names_the_fields_as_they_travel(described):
    schemas = described["components"]["schemas"]
    assert set(schemas["Input"]["properties"]) == {"from", "to"}
    assert schemas["NewJob"]["additionalProperties"] is False
    assert schemas["NewJob"]["required"] == ["type"]


def test_real_answers_fit_their_schemas(site, described):
    upload = site.upload()
    body = {"type": "csv_profile", "inputs": [{"from": f"artifact:{upload['id']}"}]}
    job = site.request("POST", "/jobs", json=body).json
    site.services.workers.register("01900000-0000-7000-8000-000000000001", "host", 1, ["default"], 2)
    concrete = {
        "/me": None,
        "/jobs": None,
        "/jobs/{job_id}": job["id"],
        "/jobs/{job_id}/outputs": job["id"],
        "/jobs/{job_id}/attempts": job["id"],
        "/trace/{job_id}": job["id"],
        "/files/{file_id}": upload["id"],
        "/queues": None,
        "/workers": None,
        "/plugins": None,
        "/plugins/{name}": "csv_profile",
        "/users": None,
        "/roles": None,
        "/permissions": None,
        "/tokens": None,
        "/sessions": None,
        "/remotes": None,
        "/audit": None,
        "/audit/verify": None,
        "/audit/checkpoints": None,
    }
    headers = {"Authorization": f"Bearer {site.token(scopes=sorted(Permission))}"}
    for template, value in concrete.items():
        path = (
            template
            if value is None
            else template.replace(template[template.index("{") : template.index("}") + 1], value)
        )
        answer = site.client().get(f"/api/v1{path}", headers=headers)
        assert answer.status_code == 200, (path, answer.text)
        operation = described["paths"][f"/api/v1{template}"]["get"]
        schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
        jsonschema.Draft202012Validator({**schema, "components": described["components"]}).validate(answer.json)


def test_problems_fit_their_schema(site, described):
    schema = {"$ref": "#/components/schemas/Problem", "components": described["components"]}
    for answer in (site.client().get("/nope"), site.request("POST", "/jobs", json={}), site.client().get("/api/v1/me")):
        jsonschema.Draft202012Validator(schema).validate(answer.get_json(force=True))


def test_the_page_loads_nothing_from_elsewhere(site):
    page = site.client().get("/docs").text
    assert "http://" not in page
    assert "https://" not in page
    assert "<script>" not in page
    for part in page.split('"'):
        if part.startswith("/static/"):
            assert site.client().get(part).status_code == 200, part
