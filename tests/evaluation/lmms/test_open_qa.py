"""MSVD-QA, MSRVTT-QA and TGIF-QA for lmms-eval: files, scores and the judge."""

import http.server
import json
import math
import threading

import pytest

from elva_jax.errors import ElvaError
from elva_jax.evaluation.benchmarks import registry
from elva_jax.evaluation.lmms import open_qa
from elva_jax.evaluation.lmms.judging import judge_of
from elva_jax.utils.chat_client import Retry


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


def test_scores_without_a_judge():
    doc = {"question_id": "1", "question": "who runs ? ", "answer": "a young man"}
    given = {"pre_prompt": "Look. ", "post_prompt": " Briefly."}
    assert open_qa.prompt(doc, given) == "Look. Who runs ? Briefly."
    assert open_qa.grade(doc, "Young man.") == {"exact_match": 1.0, "token_f1": 1.0}
    assert open_qa.grade(doc, "man") == {"exact_match": 0.0, "token_f1": pytest.approx(2 / 3)}
    assert open_qa.grade(doc, "") == {"exact_match": 0.0, "token_f1": 0.0}
    assert open_qa.mean_score([5, 4, 2, None]) == pytest.approx(11 / 3)
    assert math.isnan(open_qa.mean_score([None]))


def test_a_judge_by_the_variables_of_lmms_eval(monkeypatch):
    replies, asked = ["{'pred': 'yes', 'score': 4}", "hm", "hm"], []

    class Server(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            asked.append((self.path, self.headers["Authorization"], json.loads(body)["model"]))
            message = {"message": {"content": replies.pop(0)}, "finish_reason": "stop"}
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"choices": [message]}).encode())

        def log_message(self, *args):
            pass

    monkeypatch.setenv("OPENAI_API_KEY", "k")
    doc = {"question_id": "1", "question": "Who runs?", "answer": "a man"}
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/v1/chat/completions"
        judge = judge_of({"OPENAI_API_URL": address, "MODEL_VERSION": "m"}, Retry(tries=1))
        judged, failed = (open_qa.grade(doc, text, judge) for text in ("he", "she"))
        server.shutdown()
    assert set(asked) == {("/v1/chat/completions", "Bearer k", "m")}
    names = ("judge_accuracy", "judge_score", "judge_failures")
    assert [judged[name] for name in names] == [100.0, 4.0, 0]
    assert [failed[name] for name in names] == [0.0, None, 1]
    assert judge_of({}) is None
    assert judge_of({"OPENAI_API_KEY": "k", "API_TYPE": "azure"}) is None
    with pytest.raises(ElvaError, match="must be an address"):
        judge_of({"OPENAI_API_URL": "localhost"})
