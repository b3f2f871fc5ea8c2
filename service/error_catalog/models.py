"""Reasons that concern models and the registry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from service.error_catalog.entry import ErrorEntry, models, stub
from service.errors import Reason

DAMAGED: Final = """\
damaged = Path("models/damaged")
shutil.copytree("models/current", damaged)
(damaged / "model.onnx").write_bytes(b"")

"""

MODELS: Final[Mapping[str, ErrorEntry]] = {
    Reason.MODEL_VERSION_INVALID: ErrorEntry(
        "The version is empty, or nothing that a bundle can be called.",
        "Send a version that ListModels returns.",
        models('client.activate("../models")'),
    ),
    Reason.ROLLOUT_MISSING: ErrorEntry(
        "SetRollout names neither a shadow nor a canary.",
        "Set one of them. To end a rollout, call ClearRollout.",
        stub("models", "SetRollout", "SetRolloutRequest()"),
    ),
    Reason.ROLLOUT_SHARE_INVALID: ErrorEntry(
        "The share of a canary is not above 0 and at most 1.",
        "Send a share such as 0.1 for a tenth of the customers. To end a rollout, call ClearRollout.",
        models(
            'client.set_rollout(Canary("20261122T060541-2fc7ed8d", share=10))',
            imports="from tidemark import Canary, ModelClient",
        ),
    ),
    Reason.PAGE_SIZE_INVALID: ErrorEntry(
        "The page size of ListModels is negative.",
        "Send a positive number, or 0 for the server's default.",
        models("client.list(page_size=-1)"),
    ),
    Reason.PAGE_TOKEN_INVALID: ErrorEntry(
        "The page token of ListModels is not one that a server returned.",
        "Send `next_page_token` of the previous response as it is, or leave it out for the first page.",
        stub("models", "ListModels", 'ListModelsRequest(page_token="2")'),
    ),
    Reason.MODEL_UNKNOWN: ErrorEntry(
        "The registry has no bundle of this version.",
        "Send a version that ListModels returns. Check that the server and `tidemark fit` use the same registry.",
        models('client.activate("20200101T000000-00000000")'),
    ),
    Reason.MODEL_REFUSED: ErrorEntry(
        "The bundle must not be served: a file is missing or damaged, its golden rows do not come out right, its "
        "states are not loaded, or it was made for another release. The message says which.",
        "Fit the bundle again, or load its states with `tidemark load --bundle VERSION`. The model that answers now "
        "stays.",
        models(
            'client.activate("damaged")',
            imports="import shutil\nfrom pathlib import Path\n\nfrom tidemark import ModelClient",
            before=DAMAGED,
        ),
    ),
    Reason.ROLLOUT_FILE_INVALID: ErrorEntry(
        "The file `rollout.json` in the registry cannot be read. GetServingModel shows this as a refusal; the "
        "rollout of before goes on.",
        "Call SetRollout or ClearRollout, which write the file again.",
        models(
            "while (refusal := client.serving().refusal) is None:",
            "    time.sleep(0.1)",
            "print(refusal.reason)",
            imports="import time\nfrom pathlib import Path\n\nfrom tidemark import ModelClient",
            before='Path("models/rollout.json").write_text("{")\n',
        ),
    ),
    Reason.REGISTRY_UNAVAILABLE: ErrorEntry(
        "The server cannot read or write the folder of the registry. Scores are not affected.",
        "Check that the folder exists, that it is mounted, and that the server may write into it.",
        models(
            "client.list()",
            imports="from pathlib import Path\n\nfrom tidemark import ModelClient",
            before='Path("models").rename("models-elsewhere")\n',
        ),
    ),
}
"""By reason."""
