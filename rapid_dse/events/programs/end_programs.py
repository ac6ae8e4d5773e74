"""What stands before the first layer and after the last one, as a program: embedding, head and loss, with their transfers; and what a
tensor-parallel group sums at the end of a step."""

from __future__ import annotations

from dataclasses import dataclass

from rapid_dse.events.programs.layer_program import LAST, LATE, ExchangePart, Half, behind_weights, exchange
from rapid_dse.events.programs.script import After, Script


@dataclass(frozen=True)
class EndWork:
    """Embedding, head and loss of one micro-batch: seconds, and transfers with the time that closed forms give them.

    Attributes:
        embedding: seconds of the look-up, and of its gradient.
        looked_up: its exchange is the stream that look-ups give.
        head: head and loss; its exchange is what the head reads: a stream for each token that it predicts.
        loss: its exchange is a number a token, which is reduced ``reductions`` times.
        replicated: its exchange are the gradients of weights that each rank holds whole, summed once a step.
        hidden: share of the head's backward transfers that hides behind its weight gradient.
        trained: whether the embedding has a gradient.
    """

    embedding: float
    looked_up: Half
    head: Half
    loss: Half
    reductions: int
    replicated: Half
    hidden: float
    trained: bool = True


def embedding_forward(script: Script, work: EndWork, after: After) -> After:
    """The look-up, and the sum of what each rank found."""
    after = script.compute(after, work.embedding, "embedding")
    for kind in LAST:
        after = exchange(script, work.looked_up, after, ExchangePart(kind))
    return after


def embedding_backward(script: Script, work: EndWork, after: After) -> After:
    """Under sequence parallelism each rank gathers the gradient of what it looked up."""
    return exchange(script, work.looked_up, after, ExchangePart("ALL_GATHER")) if work.trained else after


def head_forward(script: Script, work: EndWork, after: After) -> After:
    """The head on the whole stream, and the loss of logits that lie spread over the ranks."""
    after = exchange(script, work.head, after, ExchangePart("ALL_GATHER"))
    after = script.compute(after, work.head.forward, "head and loss forward")
    for _ in range(work.reductions):
        after = exchange(script, work.loss, after, ExchangePart("ALL_REDUCE"))
    return after


def head_backward(script: Script, work: EndWork, after: After) -> After:
    """The gradients of the head, and the sum of its input's over the ranks."""
    after = script.compute(after, work.head.input_gradient, "head and loss backward")
    return behind_weights(script, work.head, after, LATE, (work.hidden, 1.0))


def replicated_gradients(script: Script, work: EndWork, after: After) -> After:
    """The sum of the gradients of weights that each rank holds whole, at the end of a step."""
    return exchange(script, work.replicated, after, ExchangePart("ALL_REDUCE", skew=False))


PASSES = {
    "embedding_forward": embedding_forward,
    "embedding_backward": embedding_backward,
    "head_forward": head_forward,
    "head_backward": head_backward,
    "replicated_gradients": replicated_gradients,
}
