"""The ClientApp: Flower messages in, `fl_app.local_round` and `fl_app.enrolment` at work, messages out."""

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from threadpoolctl import threadpool_limits

from fl_app import enrolment, local_round
from fl_app.config import RunConfig
from fl_app.site import Common, Site
from strategies import wire

app = ClientApp()


@app.query("enrol")
def enrol(message: Message, context: Context) -> Message:
    """Say which clients this node hosts."""
    config = RunConfig.parse(context.run_config)
    return Message(enrolment.answer(config, context.node_config, message.content), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the clients that the message names."""
    return _answer(local_round.train, message, context)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Measure the model on the test rows of the clients that the message names."""
    return _answer(local_round.evaluate, message, context)


def _answer(work: local_round.Work, message: Message, context: Context) -> Message:
    site = Site.of(context, Common.of(wire.read_config(message.content)))
    with threadpool_limits(site.config.threads):
        answer = work(site, wire.read_order(message.content), wire.read_params(message.content))
    return Message(wire.answer_content(answer), reply_to=message)
