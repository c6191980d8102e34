"""A check of Compose files for checkov, which brings none: each service has what the head of compose.yaml promises."""

from checkov.common.models.enums import CheckCategories, CheckResult
from checkov.yaml_doc.base_yaml_check import BaseYamlCheck
from checkov.yaml_doc.enums import BlockType


class ServicesAreHardened(BaseYamlCheck):
    def __init__(self):
        super().__init__(
            name="Ensure that each service is read-only, without capabilities, and has limits",
            id="CKV2_COMPOSE_1",
            categories=[CheckCategories.GENERAL_SECURITY],
            supported_entities=["services"],
            block_type=BlockType.OBJECT,
        )

    def scan_entity_conf(self, services, entity_type):
        hardened = bool(services) and all(
            service.get("read_only") is True
            and service.get("cap_drop") == ["ALL"]
            and {"cpus", "memory", "pids"} <= service.get("deploy", {}).get("resources", {}).get("limits", {}).keys()
            and not {"privileged", "cap_add", "devices", "network_mode", "pid", "volumes"} & service.keys()
            for service in services.values()
            if isinstance(service, dict)
        )
        return CheckResult.PASSED if hardened else CheckResult.FAILED, services


check = ServicesAreHardened()
