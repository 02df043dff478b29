"""MSVD-QA, MSRVTT-QA and TGIF-QA for lmms-eval: files, scores and the judge."""

import http.server
import json
import math
import threading

import pytest

from elva_jax.errors import ElvaError
from elva_jax.evaluation.benchmarks import registry
from elva_jax.evaluation.lmms import judging, open_qa
from elva_jax.evaluation.lmms.judging import Judge, Verdict


def test_documents_are_those_of_our_own_readers(tmp_path):
    questions = [{"video_name": "b", "question_id": 1, "question": "what is red"}]
    (tmp_path / "test_q.json").write_text(json.dumps(questions))
    (tmp_path / "test_a.json").write_text(json.dumps([{"question_id": 1, "answer": "ball"}]))
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "b.avi").touch()
    for name, variable in open_qa.VARIABLES.items():
        (doc,) = open_qa.docs_of(name, {variable: str(tmp_path)})
        (question,) = registry.find([name])[0].read(tmp_path)
        assert doc == {
            "question_id": "1",
            "video": question.media[0].source,
            "question": "What is red?",
            "answer": "ball",
        }
        assert open_qa.prompt(doc, None) == question.prompt
        with pytest.raises(ElvaError, match=f"{variable} is not set; it names the folder of"):
            open_qa.docs_of(name, {})


def test_scores_without_a_judge(monkeypatch):
    for name in ("OPENAI_API_URL", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    doc = {"question": "who runs ? ", "answer": "a young man"}
    given = {"pre_prompt": "Look. ", "post_prompt": " Briefly."}
    assert open_qa.prompt(doc, given) == "Look. Who runs ? Briefly."
    assert open_qa.grade(doc, "Young man.") == {"exact_match": 1.0, "token_f1": 1.0}
    assert open_qa.grade(doc, "man") == {"exact_match": 0.0, "token_f1": pytest.approx(2 / 3)}
    assert open_qa.grade(doc, "") == {"exact_match": 0.0, "token_f1": 0.0}


def test_a_failure_of_the_judge_stays_in_the_denominator():
    verdicts = [Verdict(True, 5), Verdict(True, 4), Verdict(False, 2), None]
    assert open_qa.judge_accuracy(verdicts) == 50.0
    assert open_qa.judge_score(verdicts) == pytest.approx(11 / 3)
    assert open_qa.judge_failures(verdicts) == 1
    assert math.isnan(open_qa.judge_score([None]))


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("{'pred': 'yes', 'score': 4.8}", Verdict(True, 4.8)),
        ('```json\n{"pred": "no", "score": "2"}\n```', Verdict(False, 2.0)),
        ("{'pred': 'yes', 'score': 9}", None),
        ("{'pred': True, 'score': 4}", None),
        ("{'pred': 'maybe', 'score': 3}", None),
        ("{'pred': 'yes', 'score': True}", None),
        ("{'score': 4}", None),
        ("{''score': 4.8}", None),
        ("yes, 4", None),
        ("", None),
        ("{'pred': 'yes', 'score': 4} or {'pred': 'no', 'score': 1}", None),
    ],
)
def test_replies_are_read_strictly(reply, verdict):
    if verdict is None:
        with pytest.raises(ValueError, match=r"object|literal|yes or no"):
            judging.read_verdict(reply)
    else:
        assert judging.read_verdict(reply) == verdict


def test_a_judge_is_asked_again_and_given_up(monkeypatch, caplog):
    replies = [(500, ""), (200, "{'pred': 'yes', 'score': 4}"), *[(200, "hm")] * 3]
    asked = []

    class Server(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            asked.append((self.headers["Authorization"], json.loads(body)))
            status, text = replies.pop(0)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps({"choices": [{"message": {"content": text}}]}).encode())

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environ = {
            "OPENAI_API_URL": f"http://127.0.0.1:{server.server_port}/v1/chat/completions",
            "OPENAI_API_KEY": "k",
            "MODEL_VERSION": "m",
        }
        judge = judging.configured(environ)
        assert judge is not None
        assert judging.ask(judge, "Who?", "a man", "he", pause=0) == Verdict(True, 4)
        assert judging.ask(judge, "Who?", "a man", "he", pause=0) is None
        assert judging.ask(judge, "Who?", "a man", " ", pause=0) == Verdict(False, 0)
        server.shutdown()
    assert len(asked) == 5
    key, body = asked[0]
    assert (key, body["model"], body["temperature"]) == ("Bearer k", "m", 0)
    assert "the judge did not answer: 'hm' has 0 objects" in caplog.text
    assert judging.configured({}) is None
    assert judging.configured({"OPENAI_API_KEY": "k", "API_TYPE": "azure"}) is None
    assert isinstance(judge, Judge)
