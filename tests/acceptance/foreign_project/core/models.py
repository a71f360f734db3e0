"""The foreign project's models; they write to graphs."""

from graph_migrator import graph_writer
from sqlalchemy import Text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column


class Base(DeclarativeBase):
    pass


class Node(Base):
    __tablename__ = "nodes"
    __table_args__ = {"schema": "graph_migrator"}  # noqa: RUF012

    graph_id: Mapped[str] = mapped_column(primary_key=True)
    id: Mapped[str] = mapped_column(primary_key=True)
    label: Mapped[str] = mapped_column(Text)


def relabel(session: Session, slug: str, label: str, *, version: int) -> int:
    with graph_writer(session, slug, version=version) as graph:
        return session.query(Node).filter(Node.graph_id == graph.id).update({"label": label})
