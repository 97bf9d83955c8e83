"""An encoder of a kind that only transformers knows, and a head on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from edgewise.errors import ModelError, WeightsError
from edgewise.models.config import Encoder, HuggingFace
from edgewise.models.inputs import Shape
from edgewise.models.text import folder as folders
from edgewise.models.text import masks
from edgewise.models.text.words import Words
from edgewise.models.weights import few

# Written out in torch: the other forms of attention hide their products from the counters and the exporters.
ATTENTION = "eager"


class HuggingFaceEncoder(nn.Module):
    """Token ids int64 (N, L) -> logits (N, K), or of each token (N, L, K); ``encoder`` is transformers' own module."""

    def __init__(self, config: Encoder, encoder: nn.Module, width: int, classes: int) -> None:
        super().__init__()
        self.config = config
        self.padding = config.padding
        self.encoder = encoder
        self.dropout = nn.Dropout(config.dropout) if config.dropout else nn.Identity()
        self.head = nn.Linear(width, classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """The mask, and the types of a pair, are made of the tokens."""
        real = masks.real(tokens, self.padding)
        more = {}
        if self.config.separator is not None:
            more["token_type_ids"] = masks.token_types(tokens, self.config.separator)
        x: Tensor = self.encoder(tokens, attention_mask=real.to(tokens.dtype), return_dict=True, **more)[0]
        if self.config.answers == "sequence":
            x = x[:, 0] if self.config.pooling == "cls" else masks.mean_over(x, real)
        logits: Tensor = self.head(self.dropout(x))
        return logits


def from_folder(
    config: HuggingFace, folder: Path, settings: dict[str, Any], input_shape: Shape, classes: int
) -> HuggingFaceEncoder:
    """The net of a folder whose family is none of edgewise's.

    Raises:
        ModelError: transformers isn't there, doesn't know the kind, or can't build it; or a wish that can't be met.
        WeightsError: the weights are missing, a pickle, damaged, or of another net.
    """
    folders.parts(folder)
    if config.answers == "vocabulary":
        raise ModelError(
            f"answers: vocabulary of a {settings['model_type']} is not known here",
            where="answers",
            hint="families whose head for masked words is: bert, distilbert, roberta, electra",
        )
    if config.pooling == "pooler":
        raise ModelError(
            f"the pooler of a {settings['model_type']} is not known here", where="pooling", hint="pooling: cls or mean"
        )
    stated = folders.stated_pooling(folder) or "cls"
    padding, dropout = settings.get("pad_token_id"), config.dropout
    described = Encoder(
        settings={**settings, **({} if config.layers is None else {"num_hidden_layers": config.layers})},
        answers=config.answers,
        pooling=stated if config.pooling == "auto" else config.pooling,
        padding=0 if padding is None else padding,
        separator=config.separator,
        dropout=settings.get("hidden_dropout_prob", 0.1) if dropout is None else dropout,
    )
    net = build_encoder(described, input_shape, classes, where=str(folder))
    _load(net, folder)
    return net


def build_encoder(config: Encoder, input_shape: Shape, classes: int, where: str = "encoder") -> HuggingFaceEncoder:
    """The net of a config, with fresh weights.

    Raises:
        ModelError: as :func:`from_folder`.
    """
    transformers = _transformers(where)
    kind = config.settings.get("model_type")
    with _told(f"transformers can't build its {kind}", where):
        settings = transformers.AutoConfig.for_model(**config.settings)
        if settings.is_encoder_decoder:
            raise ValueError("it is an encoder with a decoder; expected an encoder")
        settings.architectures = None
        encoder = transformers.AutoModel.from_config(settings, attn_implementation=ATTENTION).float()
        width = settings.hidden_size
        table = encoder.get_input_embeddings()
    if type(table) is not nn.Embedding or table.num_embeddings < input_shape[1]:
        raise ModelError(
            f"its table of words doesn't take the task's {input_shape[1]} tokens",
            where=where,
            hint="give the task the tokenizer that lies in the checkpoint's folder",
        )
    words = Words(table.num_embeddings, table.embedding_dim)
    words.weight = table.weight
    encoder.set_input_embeddings(words)
    net = HuggingFaceEncoder(config, encoder, width, classes)
    _drop_pooler(net, input_shape)
    _try(net, input_shape, where)
    return net


def _drop_pooler(net: HuggingFaceEncoder, input_shape: Shape) -> None:
    """The pooler answers what nobody reads here; its quantizers would be missed in an exported graph."""
    encoder: Any = net.encoder
    pooler = getattr(encoder, "pooler", None)
    if pooler is None:
        return
    encoder.pooler = None  # as transformers' own heads build their encoders
    try:
        _try(net, input_shape, "pooler")
    except ModelError:
        encoder.pooler = pooler


def _load(net: HuggingFaceEncoder, folder: Path) -> None:
    """Transformers' own loading knows what names older checkpoints had. Safetensors alone, no code of the folder."""
    transformers = _transformers(str(folder))
    with _told("transformers can't load it", str(folder)):
        loaded, about = transformers.AutoModel.from_pretrained(
            folder,
            config=net.encoder.config,
            attn_implementation=ATTENTION,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    missing = sorted(name for name in about["missing_keys"] if "pooler" not in name)
    if missing or about["mismatched_keys"]:
        raise WeightsError(
            f"{len(missing)} tensors missing, {len(about['mismatched_keys'])} of another shape ({few(missing)})",
            where=str(folder),
            hint="the folder's config.json speaks of another net: fetch it again",
        )
    tensors, own = loaded.float().state_dict(), net.encoder.state_dict()
    net.encoder.load_state_dict({name: tensor for name, tensor in tensors.items() if name in own})


def _try(net: nn.Module, input_shape: Shape, where: str) -> None:
    import torch

    from edgewise.models.inputs import blank

    training = net.training
    with _told("its forward pass fails", where), torch.no_grad():
        net.eval()(torch.from_numpy(blank(input_shape, 1)))
    net.train(training)


def _transformers(where: str) -> Any:
    try:
        import transformers
    except ImportError as cause:
        raise ModelError(
            "this kind of net needs transformers", where=where, hint="pip install edgewise[text]"
        ) from cause
    from transformers.masking_utils import AttentionMaskInterface

    AttentionMaskInterface.register(ATTENTION, _mask)
    return transformers


def _mask(**given: Any) -> Tensor:
    """Transformers adds no mask where no text of a batch is padded. The operations would then be others from batch to
    batch, and a quantizer that is placed by an operation's number would sit on the next one."""
    from transformers.masking_utils import eager_mask

    mask: Tensor = eager_mask(**{**given, "allow_is_bidirectional_skip": False})
    return mask


@contextmanager
def _told(what: str, where: str) -> Iterator[None]:
    """Whatever a library raises about a user's folder, in one line."""
    try:
        yield
    except (ModelError, WeightsError):
        raise
    except Exception as cause:  # transformers raises what it likes, by kind of net
        text = str(cause).strip().splitlines()
        raise ModelError(
            f"{what}: {text[0] if text else type(cause).__name__}",
            where=where,
            hint="give a BERT, DistilBERT, RoBERTa or ELECTRA, or the net as kind: factory",
        ) from cause
