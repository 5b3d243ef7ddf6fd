/* SPDX-License-Identifier: MIT */
/* Commands to a target that is at work: one at a time, on a coroutine of its first queue. */
#include "internal.h"

#include <errno.h>
#include <semaphore.h>

struct command {
	struct ubd_command c;
	int result;
	sem_t done;
};

static void finish(struct command *c, int result)
{
	c->result = result;
	sem_post(&c->done); /* c is the caller's again */
}

static void run(struct ubd_queue *q, void *arg)
{
	struct command *c = arg;

	finish(c, q->target->command(q, q->self, &c->c));
}

void command_drain(struct ubd_queue *q)
{
	struct command *c;
	int ret;

	pthread_mutex_lock(&q->remote_lock);
	c = q->command;
	q->command = NULL;
	pthread_mutex_unlock(&q->remote_lock);
	if (!c)
		return;
	ret = q->stopping ? -ENODEV : ubd_spawn(q, run, c);
	if (ret)
		finish(c, ret);
}

int ubd_device_command(struct ubd_device *dev, const char *const *words, unsigned count,
		       ubd_status_fn *fn, void *arg)
{
	struct ubd_status answer = {fn, arg};
	struct command c = {.c = {.words = words, .count = count, .answer = &answer}};
	struct ubd_queue *q = dev->queues;
	bool ended;

	dev->error[0] = 0;
	/* A target of an earlier interface ends before that member. */
	if (dev->target->api < 3 || !dev->target->command)
		return device_fail(dev, -EOPNOTSUPP, "the target %s takes no commands",
				   dev->target->name);
	if (!dev->started)
		return device_fail(dev, -ENODEV, "the device is not running");
	sem_init(&c.done, 0, 0);
	pthread_mutex_lock(&q->remote_lock);
	ended = q->stop_wanted;
	if (!ended) {
		q->command = &c;
		queue_kick(q);
	}
	pthread_mutex_unlock(&q->remote_lock);
	while (!ended && sem_wait(&c.done))
		;
	sem_destroy(&c.done);
	c.result = ended ? -ENODEV : c.result;
	return c.result < 0 ? device_fail(dev, c.result, "%s", strerror(-c.result)) : 0;
}
