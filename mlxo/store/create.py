"""Making a model: a base (files, package, hub, another model) and what a Modelfile lays over it."""

from __future__ import annotations

import difflib
import re
import threading
from collections.abc import Mapping

import msgspec

from mlxo import OLLAMA_API_VERSION
from mlxo.chat.template import Template, capabilities
from mlxo.core.errors import InvalidRequest, ModelNotFound, NotFound, UnsupportedModel
from mlxo.core.names import DEFAULT_TAG, HUB_HOSTS, ModelName
from mlxo.core.options import Options
from mlxo.core.types import NGRAM, Frozen, Layer, Message
from mlxo.modelfile import Modelfile, Quantize
from mlxo.store import gallery, hub, inspect, manifests, package, sources
from mlxo.store.entries import Overrides
from mlxo.store.inspect import Facts
from mlxo.store.manifests import ModelConfig, Stored
from mlxo.store.progress import Progress, Report
from mlxo.store.registry import Registry
from mlxo.store.sources import Base, Making

# A field or a block of Go's text/template; Jinja has no expression that begins so.
_GO_TEMPLATE = re.compile(r"\{\{-?\s*(?:\.[A-Za-z]|(?:if|range|with|else\s+if)\s[^}'\"]*[.$])")


class Recipe(Frozen, frozen=True, kw_only=True):
    """What a create asks for; None and () were not given. `files` maps relative paths to digests."""

    from_: str = ""
    files: dict[str, str] = msgspec.field(default_factory=dict)
    template: str | None = None
    system: str | None = None
    options: Options = Options()
    messages: tuple[Message, ...] = ()
    licenses: tuple[str, ...] = ()
    quantize: Quantize | None = None
    keep_alive: float | None = None
    draft: str | None = None
    renderer: str | None = None
    parser: str | None = None
    requires: str | None = None
    adapter: str | None = None


def recipe_from_modelfile(modelfile: Modelfile, files: Mapping[str, str] | None = None) -> Recipe:
    """`files` are the uploads that stand for a FROM that was a path. Raises ModelfileError."""
    return Recipe(
        from_="" if files else modelfile.from_[-1],
        files=dict(files or {}),
        template=modelfile.template,
        system=modelfile.system,
        options=modelfile.options,
        messages=modelfile.messages,
        licenses=modelfile.licenses,
        quantize=modelfile.quantize,
        keep_alive=modelfile.keep_alive,
        draft=modelfile.draft,
        renderer=modelfile.renderer,
        parser=modelfile.parser,
        requires=modelfile.requires,
        adapter=modelfile.adapter,
    )


def create(
    registry: Registry, name: str, recipe: Recipe, report: Report, cancelled: threading.Event
) -> Stored:
    """Make or replace a model. It may raise all of the tree; the name then means what it did before."""
    target = ModelName.parse(name)
    check_recipe(recipe)
    _check_draft(registry, recipe.draft)
    with registry.workspace() as folder:
        making = Making(
            registry=registry, folder=folder, report=report, cancelled=cancelled, quantize=recipe.quantize
        )
        return finish(making, target, _base(making, recipe), recipe)


def create_from_gallery(
    registry: Registry, modelfile: Modelfile, report: Report, cancelled: threading.Event
) -> None:
    """Make the model that a Modelfile of the gallery names, and its aliases."""
    name, *aliases = gallery.names(modelfile)
    create(registry, name.full, recipe_from_modelfile(modelfile), _without_end(report), cancelled)
    for alias in aliases:
        registry.copy(name.full, alias.full)
    report(Progress(status="success"))


def check_recipe(recipe: Recipe) -> None:
    """Refuse what this version cannot do, before anything is read or written."""
    if not recipe.from_ and not recipe.files:
        raise InvalidRequest(
            "neither 'from' or 'files' was specified", "FROM names a model, a file or a folder"
        )
    if recipe.adapter:
        raise UnsupportedModel(
            "adapters are not supported yet", "drop ADAPTER, or fuse it into the weights first"
        )
    if recipe.template and _GO_TEMPLATE.search(recipe.template):
        raise UnsupportedModel(
            "Go templates are not supported yet; TEMPLATE takes Jinja", "drop TEMPLATE to use the model's own"
        )
    if recipe.template:
        Template(recipe.template, {})  # raises InvalidRequest for what does not compile
    if recipe.requires and _version(recipe.requires) > _version(OLLAMA_API_VERSION):
        raise UnsupportedModel(
            f"this model requires version {recipe.requires}, and this is {OLLAMA_API_VERSION}", "update mlxo"
        )


def _check_draft(registry: Registry, draft: str | None) -> None:
    """Raises ModelNotFound for a DRAFT that is no model here, InvalidName for one that cannot be."""
    if draft and draft != NGRAM and not registry.has(ModelName.parse(draft)):
        raise ModelNotFound(
            f"DRAFT names the model '{draft}', which is not here",
            f"mlxo pull {draft} fetches it; DRAFT {NGRAM} needs no model",
        )


def finish(making: Making, target: ModelName, base: Base, recipe: Recipe) -> Stored:
    """Lay the recipe over the base, write the manifest."""
    registry = making.registry
    files = {str(layer.name): registry.blobs.path(layer.digest) for layer in base.files}
    over = _merged(base.over, recipe)
    config = _config(base, recipe, over, inspect.describe(files))
    layers = (*base.files, *_override_layers(making, over))
    blob = registry.blobs.add_bytes(msgspec.json.encode(config))
    making.say("writing manifest")
    head = Layer(media_type=manifests.CONFIG, digest=blob.digest, size=blob.size)
    stored = registry.commit(target, head, layers)
    making.report(Progress(status="success"))
    return stored


def _base(making: Making, recipe: Recipe) -> Base:
    source = recipe.from_
    if not source:
        return sources.from_files(making, recipe.files)
    if source.startswith(package.PREFIX):
        path = package.locate(source)
        if path.is_dir():
            return sources.from_folder(making, path, source)
        return sources.from_gguf(making, path, None, source)
    name = ModelName.parse(source)
    if not making.registry.has(name):
        modelfile = gallery.find(name)
        if modelfile is not None:
            create_from_gallery(making.registry, modelfile, _without_end(making.report), making.cancelled)
        elif hub.is_repository(name):
            return sources.from_files(making, hub.fetch(making, name), source)
        else:
            raise NotFound("pull model manifest: file does not exist", unknown(name, making.registry))
    return sources.from_model(making, making.registry.manifests.read(name))


def unknown(name: ModelName, registry: Registry) -> str:
    """The hint for a name that is neither here nor in the gallery nor on a hub."""
    if known := gallery.variants(name):
        return f"{name.model} comes as {', '.join(known)}"
    here = [ModelName.parse(entry.name) for entry in registry.list()]
    there = [n for modelfile in gallery.entries() for n in gallery.names(modelfile)]
    # Without the tag that so many have, or each would be like every other.
    words = [n.short.removesuffix(f":{DEFAULT_TAG}") for n in (name, *here, *there)]
    close = difflib.get_close_matches(words[0], words[1:], n=1, cutoff=0.75)
    if close:
        return f"did you mean {close[0]}?"
    families = ", ".join(gallery.families())
    return f"the gallery has {families}; a Hugging Face model is {HUB_HOSTS[0]}/ORG/{name.model}"


def _merged(base: Overrides, recipe: Recipe) -> Overrides:
    """Template, system and messages replace, licences append, parameters merge key by key."""
    added = tuple(text for text in recipe.licenses if text not in base.licenses)
    return Overrides(
        template=base.template if recipe.template is None else recipe.template or None,
        system=base.system if recipe.system is None else recipe.system or None,
        options=recipe.options.over(base.options),
        licenses=base.licenses + added,
        messages=recipe.messages or base.messages,
    )


def _override_layers(making: Making, over: Overrides) -> tuple[Layer, ...]:
    texts = [(manifests.TEMPLATE, over.template), (manifests.SYSTEM, over.system)]
    texts += [(manifests.LICENSE, text) for text in over.licenses]
    contents = [(kind, text.encode()) for kind, text in texts if text is not None]
    if over.options != Options():
        contents.append((manifests.PARAMS, msgspec.json.encode(over.options)))
    if over.messages:
        contents.append((manifests.MESSAGES, msgspec.json.encode(over.messages)))
    return tuple(making.layer(making.registry.blobs.add_bytes(data), kind) for kind, data in contents)


def _config(base: Base, recipe: Recipe, over: Overrides, facts: Facts) -> ModelConfig:
    old = base.config
    template = over.template if over.template is not None else facts.template
    return ModelConfig(
        model_format="safetensors",
        model_family=facts.family,
        model_families=(facts.family,),
        model_type=facts.parameter_size,
        file_type=base.label or facts.file_type,
        context_length=facts.context_length,
        embedding_length=facts.embedding_length,
        capabilities=facts.capabilities if facts.embeds else capabilities(template),
        renderer=recipe.renderer or (old.renderer if old else None),
        parser=recipe.parser or (old.parser if old else None),
        requires=recipe.requires or (old.requires if old else None),
        draft=recipe.draft or (old.draft if old else None),
        keep_alive=recipe.keep_alive if recipe.keep_alive is not None else (old.keep_alive if old else None),
        source=base.source,
        parent=base.parent,
        architecture="amd64",
        os="linux",
        rootfs={"type": "layers", "diff_ids": [layer.digest for layer in base.files]},
    )


def _version(text: str) -> tuple[int, ...]:
    """The numbers of a semantic version; what follows them (a pre-release) does not matter here."""
    found = re.match(r"v?(\d{1,9})(?:\.(\d{1,9}))?(?:\.(\d{1,9}))?", text)
    if found is None:
        raise InvalidRequest("requires must be a valid semver (e.g. 0.14.0)")
    return tuple(int(part or 0) for part in found.groups())


def _without_end(report: Report) -> Report:
    """For a step inside a longer operation, whose `success` is not the last line."""

    def forward(progress: Progress) -> None:
        if progress.status != "success":
            report(progress)

    return forward
