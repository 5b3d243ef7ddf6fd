// SPDX-License-Identifier: GPL-2.0-only
/*
 * Members on stream sockets: SEND and RECV.
 *
 * Nothing here sleeps for a peer: a socket that is not ready is polled, and a worker goes on with
 * the member when it is. So a server that goes away need not wait for its peers: what waits is
 * cancelled, and a connection that keeps hold of the pages is aborted.
 *
 * Who goes on with a member:
 *
 *   RUNNING  one task: the server's at first, then the worker
 *   WAITING  nobody; whoever makes it RUNNING orders the work
 *   SENT     the socket, until it has let go of the last page
 *
 * A TCP connection may send pages again until they are acknowledged, long after sendmsg()
 * returned. So they are sent as MSG_ZEROCOPY with a notification of our own, and the member, with
 * it the request, lasts until that comes.
 */
#include <linux/net.h>
#include <linux/poll.h>
#include <linux/sched/mm.h>
#include <linux/socket.h>
#include <net/inet_connection_sock.h>
#include <net/sock.h>
#include "../driver.h"

/* How often a socket is tried that says it is ready and is not. */
#define VAIN_MS 5

enum {
	RUNNING,
	WAITING,
	SENT,
};

/**
 * ublk_socket_check() - can this member be done with its file?
 * @m: the member, its file set
 *
 * Return: 0 or -errno.
 */
int ublk_socket_check(const struct ublk_member *m)
{
	const struct socket *sock = sock_from_file(m->file);

	if (!sock)
		return -ENOTSOCK;
	return sock->type == SOCK_STREAM ? 0 : -EINVAL;
}

/* ---- the end ----------------------------------------------------------------------------- */

static void list_leave(struct ublk_member *m)
{
	struct ublk_zc *zc = m->group->q->zc;
	unsigned long flags;

	spin_lock_irqsave(&zc->lock, flags);
	list_del_init(&m->sk.waiting);
	spin_unlock_irqrestore(&zc->lock, flags);
}

static void list_join(struct ublk_member *m, int state)
{
	struct ublk_zc *zc = m->group->q->zc;

	spin_lock_irq(&zc->lock);
	atomic_set(&m->sk.state, state);
	list_add_tail(&m->sk.waiting, &zc->waiting);
	spin_unlock_irq(&zc->lock);
}

/*
 * A connection that ends lets go of what its peer has not acknowledged, as it does of what it
 * has; what it ended with is set before.
 */
static int lost(const struct ublk_member *m)
{
	const struct sock *sk = sock_from_file(m->file)->sk;

	return m->op == UBD_MEMBER_SEND && sk->sk_protocol == IPPROTO_TCP ?
		-READ_ONCE(sk->sk_err) : 0;
}

/* The socket, or we, let go of the pages. In any context. */
static void pages_put(struct ublk_member *m)
{
	if (!refcount_dec_and_test(&m->sk.ubuf.refcnt))
		return;
	list_leave(m);
	ublk_member_end(m, m->sk.err ?: lost(m));
}

static void skb_done(struct sk_buff *skb, struct ubuf_info *ubuf, bool ok)
{
	pages_put(container_of(ubuf, struct ublk_member, sk.ubuf));
}

#ifdef UBLK_HAVE_UBUF_OPS
static const struct ubuf_info_ops ubuf_ops = { .complete = skb_done };
#endif

static void ubuf_init(struct ubuf_info *ubuf)
{
	refcount_set(&ubuf->refcnt, 1);
	/* Without the second TCP copies the pages as it sends them, and miscounts its memory. */
	ubuf->flags = SKBFL_ZEROCOPY_FRAG | SKBFL_DONT_ORPHAN;
#ifdef UBLK_HAVE_UBUF_OPS
	ubuf->ops = &ubuf_ops;
#else
	ubuf->callback = skb_done;
#endif
}

/* Nothing is left to do but to wait for the pages. */
static void finish(struct ublk_member *m, int err)
{
	m->sk.err = err;
	if (refcount_read(&m->sk.ubuf.refcnt) > 1)
		list_join(m, SENT);
	/* The server may have gone before we could be seen. */
	if (!list_empty(&m->sk.waiting) && ublk_zc_is_dying(m->group->q))
		ublk_socket_kick(m->group->q);
	pages_put(m);
}

/* ---- one go ------------------------------------------------------------------------------ */

/* TCP itself, with no protocol such as TLS on top. */
static bool holds_pages(const struct sock *sk)
{
	return sk->sk_protocol == IPPROTO_TCP && !inet_csk(sk)->icsk_ulp_ops;
}

/* May the socket hold on to these pages? Not to what the slab allocator gives out again. */
static bool pages_may_be_held(const struct iov_iter *iter)
{
	unsigned long i;

	for (i = 0; i < iter->nr_segs; i++)
		if (!sendpage_ok(iter->bvec[i].bv_page))
			return false;
	return true;
}

static int send(struct ublk_member *m, struct socket *sock)
{
	struct msghdr msg = { .msg_flags = MSG_DONTWAIT | MSG_NOSIGNAL };

	if (m->flags & UBD_MEMBER_F_MORE)
		msg.msg_flags |= MSG_MORE;
	msg.msg_iter = m->iter;
	/* Others copy the data, at once. */
	if (holds_pages(sock->sk) && pages_may_be_held(&m->iter)) {
		msg.msg_flags |= MSG_ZEROCOPY;
		msg.msg_ubuf = &m->sk.ubuf;
	}
	return sock_sendmsg(sock, &msg);
}

static int recv(struct ublk_member *m, struct socket *sock)
{
	struct msghdr msg = { .msg_flags = MSG_DONTWAIT | MSG_NOSIGNAL };

	msg.msg_iter = m->iter;
	return sock_recvmsg(sock, &msg, msg.msg_flags);
}

/* Goes on as far as the socket lets it. Returns false when it is to be waited for. */
static bool go(struct ublk_member *m)
{
	struct socket *sock = sock_from_file(m->file);
	int ret;

	while (m->done < m->len) {
		if (ublk_zc_is_dying(m->group->q)) {
			finish(m, -ECANCELED);
			return true;
		}
		ublk_member_iter(m);
		ret = m->op == UBD_MEMBER_SEND ? send(m, sock) : recv(m, sock);
		if (ret == -EAGAIN)
			return false;
		if (ret <= 0) {
			/* The peer has ended the stream in the middle of our data. */
			finish(m, ret ?: -EIO);
			return true;
		}
		m->done += ret;
	}
	finish(m, 0);
	return true;
}

/* ---- waiting ----------------------------------------------------------------------------- */

struct member_poll {
	struct poll_table_struct table;
	struct ublk_member *m;
};

static __poll_t events_of(const struct ublk_member *m)
{
	return (m->op == UBD_MEMBER_SEND ? EPOLLOUT : EPOLLIN | EPOLLRDHUP) | EPOLLERR | EPOLLHUP;
}

static void go_on_later(struct ublk_member *m)
{
	queue_work(m->group->q->ub->zc_wq, &m->work.work);
}

/* The socket's state has changed; its wait queue is locked. */
static int wake(struct wait_queue_entry *wait, unsigned int mode, int sync, void *key)
{
	struct ublk_member *m = container_of(wait, struct ublk_member, sk.wait);

	if (key && !(key_to_poll(key) & events_of(m)))
		return 0;
	if (atomic_cmpxchg(&m->sk.state, WAITING, RUNNING) == WAITING)
		go_on_later(m);
	return 1;
}

static void queue_in(struct file *file, struct wait_queue_head *head, struct poll_table_struct *t)
{
	struct ublk_member *m = container_of(t, struct member_poll, table)->m;

	/* A stream socket has one. */
	if (WARN_ON_ONCE(m->sk.head))
		return;
	m->sk.head = head;
	add_wait_queue(head, &m->sk.wait);
}

static void wait_begin(struct ublk_member *m)
{
	struct member_poll poll = { .m = m };

	init_waitqueue_func_entry(&m->sk.wait, wake);
	init_poll_funcptr(&poll.table, queue_in);
	poll.table._key = events_of(m);
	vfs_poll(m->file, &poll.table);
}

static void wait_end(struct ublk_member *m)
{
	if (m->sk.head)
		remove_wait_queue(m->sk.head, &m->sk.wait);
	m->sk.head = NULL;
	list_leave(m);
}

/*
 * Only in the worker: work does not run beside itself, so the member stays while it is looked
 * at after others may go on with it. Returns false when there is nothing to wait for.
 */
static bool wait_for_socket(struct ublk_member *m)
{
	struct ublk_queue *q = m->group->q;

	wait_begin(m);
	list_join(m, WAITING);
	/* What came before nobody has told us of. */
	smp_mb();
	if (!(vfs_poll(m->file, NULL) & events_of(m)) && !ublk_zc_is_dying(q))
		return true;
	return atomic_cmpxchg(&m->sk.state, WAITING, RUNNING) != WAITING;
}

/*
 * A socket whose queue of errors holds something that is not ours is always ready, and so may be
 * one that gets no more memory. Twice in a row to no avail: the worker comes again later. Until
 * then the member is RUNNING, and that the server goes away is seen at the next try.
 */
static void go_on(struct ublk_member *m)
{
	unsigned int vain = 0;
	u32 before;

	do {
		if (vain == 2) {
			queue_delayed_work(m->group->q->ub->zc_wq, &m->work,
					   msecs_to_jiffies(VAIN_MS));
			return;
		}
		wait_end(m);
		before = m->done;
		if (go(m))
			return;
		vain = m->done == before ? vain + 1 : 0;
	} while (!wait_for_socket(m));
}

static void socket_work(struct work_struct *work)
{
	struct ublk_member *m = container_of(work, struct ublk_member, work.work);
	unsigned int flags = current->flags;

	current->flags |= PF_MEMALLOC_NOIO | PF_LOCAL_THROTTLE;
	go_on(m);
	current_restore_flags(flags, PF_MEMALLOC_NOIO | PF_LOCAL_THROTTLE);
}

/**
 * ublk_socket_start() - begin a member on a socket
 * @m: the member
 */
void ublk_socket_start(struct ublk_member *m)
{
	unsigned int noio = memalloc_noio_save();

	INIT_DELAYED_WORK(&m->work, socket_work);
	INIT_LIST_HEAD(&m->sk.waiting);
	atomic_set(&m->sk.state, RUNNING);
	m->sk.head = NULL;
	ubuf_init(&m->sk.ubuf);
	if (!go(m))
		go_on_later(m);
	memalloc_noio_restore(noio);
}

/* ---- the server goes away ---------------------------------------------------------------- */

/* Only the peer could make the socket let go of the pages, and it need not be there. */
static void abort_work(struct work_struct *work)
{
	struct ublk_member *m = container_of(work, struct ublk_member, work.work);
	struct sock *sk = sock_from_file(m->file)->sk;

	/* The reference of ours keeps it from having ended with success before. */
	if (!m->sk.err)
		m->sk.err = -ECANCELED;
	if (sk->sk_prot->diag_destroy)
		sk->sk_prot->diag_destroy(sk, ECONNABORTED);
	pages_put(m);
}

/**
 * ublk_socket_kick() - let no member of a queue wait for a peer
 * @q: the queue, its server dying
 */
void ublk_socket_kick(struct ublk_queue *q)
{
	struct ublk_zc *zc = q->zc;
	struct ublk_member *m;
	unsigned long flags;

	spin_lock_irqsave(&zc->lock, flags);
	list_for_each_entry(m, &zc->waiting, sk.waiting) {
		if (atomic_cmpxchg(&m->sk.state, WAITING, RUNNING) == WAITING) {
			go_on_later(m);
		} else if (atomic_cmpxchg(&m->sk.state, SENT, RUNNING) == SENT &&
			   refcount_inc_not_zero(&m->sk.ubuf.refcnt)) {
			INIT_WORK(&m->work.work, abort_work);
			go_on_later(m);
		}
	}
	spin_unlock_irqrestore(&zc->lock, flags);
}
