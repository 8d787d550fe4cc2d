"""Clients of OpenAI's, TEI's and Ollama's servers, as their packages come, against a running server
that serves all-MiniLM-L6-v2. `--token-inputs` says what that server was started with."""

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial

from cases import DIMENSIONS, TEXT, TOKENS, expect, expect_close, expect_unit, run
from haystack import Document
from haystack.components.embedders import OpenAIDocumentEmbedder, OpenAITextEmbedder
from haystack.utils import Secret
from haystack_integrations.components.embedders.huggingface_api import (
    HuggingFaceAPIDocumentEmbedder,
    HuggingFaceAPITextEmbedder,
)
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from langchain_openai import OpenAIEmbeddings
from llama_index.embeddings.openai import OpenAIEmbedding
from llama_index.embeddings.text_embeddings_inference import TextEmbeddingsInference
from ollama import Client, ResponseError
from openai import BadRequestError, OpenAI
from tei_client import HttpClient

OTHER = "All human beings are born free and equal."
CLOSE = 1e-4
KEY = "none"


def reference(url: str, text: str) -> list[float]:
    with OpenAI(base_url=f"{url}/v1", api_key=KEY) as client:
        return client.embeddings.create(model="m", input=text).data[0].embedding


def langchain_texts(url: str, expected: Sequence[float]) -> None:
    client = OpenAIEmbeddings(base_url=f"{url}/v1", api_key=KEY, check_embedding_ctx_length=False)
    expect_close(client.embed_query(TEXT), expected, CLOSE)
    expect_close(client.embed_documents([OTHER, TEXT])[1], expected, CLOSE)


def langchain_ids(url: str, expected: Sequence[float]) -> None:
    """As it comes, LangChain sends OpenAI's ids."""
    client = OpenAIEmbeddings(base_url=f"{url}/v1", api_key=KEY)
    expect_close(client.embed_query(TEXT), expected, CLOSE)
    expect_close(client.embed_documents([OTHER, TEXT])[1], expected, CLOSE)
    long = "human rights " * 6000  # in two parts
    expect(len(client.embed_query(long)) == DIMENSIONS, "a long text")


def langchain_ids_are_refused(url: str, word: str) -> None:
    client = OpenAIEmbeddings(base_url=f"{url}/v1", api_key=KEY)
    try:
        client.embed_query("你好，世界")  # two of its ids are beyond the model's vocabulary
    except BadRequestError as error:
        expect(word in str(error), str(error))
    else:
        raise AssertionError("was accepted")


def doubtful_ids(url: str) -> None:
    with OpenAI(base_url=f"{url}/v1", api_key=KEY) as client:
        create = client.embeddings.with_raw_response.create
        warning = create(model="m", input=[9906, 1917]).headers.get("x-vecmill-warning")
        expect(warning is not None and "token ids" in warning, f"warning {warning!r}")
        expect("x-vecmill-warning" not in create(model="m", input=TEXT).headers, "a warning")


def hugging_face(url: str, expected: Sequence[float]) -> None:
    client = InferenceClient(url)
    expect_close(client.feature_extraction(TEXT)[0].tolist(), expected, CLOSE)
    options = {"truncate": True, "truncation_direction": "left", "encoding_format": "float"}
    rows = client.feature_extraction([OTHER, TEXT], normalize=True, dimensions=64, **options)
    expect(rows.shape == (2, 64), f"shape {rows.shape}")
    expect_unit(rows[1].tolist())
    for wrong in ({"prompt_name": "nope"}, {"dimensions": 100_000}, {"encoding_format": "base64"}):
        try:
            client.feature_extraction(TEXT, **wrong)
        except HfHubHTTPError as error:
            expect(error.response.status_code == 422, str(error))
        else:
            raise AssertionError(f"{wrong} was accepted")


def llama_index(url: str, expected: Sequence[float]) -> None:
    for client in (
        TextEmbeddingsInference(model_name="m", base_url=url, auth_token=KEY),
        OpenAIEmbedding(api_base=f"{url}/v1", api_key=KEY),
    ):
        expect_close(client.get_text_embedding(TEXT), expected, CLOSE)
        expect_close(client.get_text_embedding_batch([OTHER, TEXT])[1], expected, CLOSE)


def haystack(url: str, expected: Sequence[float]) -> None:
    # Unless told, this embedder asks for vectors as they are.
    tei = {"api_type": "text_embeddings_inference", "api_params": {"url": url}, "normalize": True}
    openai = {"api_base_url": f"{url}/v1", "api_key": Secret.from_token(KEY)}
    for text, documents in (
        (HuggingFaceAPITextEmbedder(**tei), HuggingFaceAPIDocumentEmbedder(**tei)),
        (OpenAITextEmbedder(**openai), OpenAIDocumentEmbedder(**openai)),
    ):
        expect_close(text.run(TEXT)["embedding"], expected, CLOSE)
        found = documents.run([Document(content=OTHER), Document(content=TEXT)])["documents"]
        expect_close(found[1].embedding, expected, CLOSE)


def tei(url: str, expected: Sequence[float]) -> None:
    client = HttpClient(url)
    expect(client.health(), "not healthy")
    expect(client.info().max_input_length > 0, "no limit")
    expect_close(client.embed(TEXT)[0], expected, CLOSE)
    expect_close(client.embed([OTHER, TEXT])[1], expected, CLOSE)
    tokens = client.tokenize(TEXT)
    expect(len(tokens) == 1 and tokens[0].tokens[0].special, f"tokens {tokens}")
    expect(client.prompt_names() is not None, "no list of prompts")


def ollama(url: str, expected: Sequence[float]) -> None:
    client = Client(host=url)
    expect_close(client.embed(model="m", input=TEXT).embeddings[0], expected, CLOSE)
    options = {"num_ctx": 8192, "temperature": 0.1}
    more = {"truncate": True, "options": options, "keep_alive": "5m", "dimensions": 64}
    reply = client.embed(model="m", input=[OTHER, TEXT], **more)
    expect(reply.model == "m" and reply.prompt_eval_count > len(TOKENS), f"reply {reply}")
    expect(reply.total_duration is not None and reply.load_duration == 0, f"reply {reply}")
    expect([len(vector) for vector in reply.embeddings] == [64, 64], "dimensions")
    expect_unit(reply.embeddings[1])
    expect(client.embed(model="m").embeddings == [], "vectors of nothing")
    for wrong, word in (
        ({"input": "a " * 1000, "truncate": False}, "context length"),
        ({"input": TEXT, "options": {"num_ctx": 8}}, "num_ctx"),
    ):
        try:
            client.embed(model="m", **wrong)
        except ResponseError as error:
            expect(error.status_code == 400 and word in error.error, str(error))
        else:
            raise AssertionError(f"{wrong} was accepted")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base-url", default="http://127.0.0.1:3000")
    parser.add_argument("--token-inputs", default="model", choices=["model", "refuse", "cl100k_base"])
    given = parser.parse_args()
    url = given.base_url
    expected = reference(url, TEXT)
    cases: dict[str, Callable[[], None]] = {
        "LangChain with texts": partial(langchain_texts, url, expected),
        "huggingface_hub": partial(hugging_face, url, expected),
        "LlamaIndex": partial(llama_index, url, expected),
        "Haystack": partial(haystack, url, expected),
        "tei-client": partial(tei, url, expected),
        "ollama": partial(ollama, url, expected),
    }
    # tiktoken fetches OpenAI's vocabulary, or takes it from TIKTOKEN_CACHE_DIR.
    if given.token_inputs == "cl100k_base":
        cases["LangChain as it comes"] = partial(langchain_ids, url, expected)
    else:
        word = "check_embedding_ctx_length=False"
        cases["LangChain as it comes is told"] = partial(langchain_ids_are_refused, url, word)
    if given.token_inputs == "model":
        cases["ids that are probably another model's"] = partial(doubtful_ids, url)
    sys.exit(1 if run(cases) else 0)


if __name__ == "__main__":
    main()
