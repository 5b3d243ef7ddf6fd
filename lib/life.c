/* SPDX-License-Identifier: MIT */
/*
 * A device's life: target opened, device added, queues fetching, disk started; and back, from any
 * step, leaving nothing behind.
 */
#define _GNU_SOURCE
#include "internal.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ctrl_wait.h"

#define NODE_WAIT_MS 5000
#define START_WATCH_MS 50
#define DEFAULT_DEADLINE_MS 30000

/* ---- Starting ------------------------------------------------------------------------------ */

static int open_target(struct ubd_device *dev)
{
	int ret = option_finish(dev);

	if (!ret)
		ret = params_check_config(dev);
	if (ret)
		return ret;
	if (dev->target->open)
		ret = dev->target->open(dev, dev->self);
	if (ret)
		return device_fail(dev, ret, "target %s cannot open: %s", dev->target->name,
				   strerror(-ret));
	dev->target_open = true;
	if (dev->limits.max_queues)
		dev->cfg.queues = MIN(dev->cfg.queues, dev->limits.max_queues);
	return params_check(dev);
}

static int explain_ctrl(struct ubd_device *dev, int ret)
{
	switch (ret) {
	case -ENOENT:
	case -ENODEV:
	case -ENXIO:
		return device_fail(
			dev, ret,
			"this kernel has no ublk driver loaded (/dev/ublk-control is "
			"missing): run 'modprobe ublk_drv', or install a kernel or driver "
			"package that has it");
	case -EACCES:
	case -EPERM:
		return device_fail(
			dev, ret,
			"no permission for /dev/ublk-control: run as root (CAP_SYS_ADMIN)");
	default:
		return device_fail(dev, ret, "cannot open /dev/ublk-control: %s", strerror(-ret));
	}
}

static int explain_add(struct ubd_device *dev, int ret)
{
	if (ret == -EEXIST)
		return device_fail(
			dev, ret,
			"device number %u is already in use: give another one, or delete "
			"that device first",
			dev->cfg.id);
	if (ret == -EPERM || ret == -EACCES)
		return device_fail(
			dev, ret,
			"no permission to add a ublk device: run as root (CAP_SYS_ADMIN)");
	if (ret == -ETIMEDOUT)
		return device_fail(dev, ret, "the driver did not add a device within %u ms",
				   dev->cfg.deadline_ms);
	return device_fail(dev, ret, "the driver refused to add a device: %s", strerror(-ret));
}

/* Reach the driver and choose a way that it has; *features are all that it has. */
static int open_driver(struct ubd_device *dev, uint64_t *features)
{
	uint64_t extensions;
	int ret = ubd_ctrl_open(&dev->ctrl);

	if (ret)
		return explain_ctrl(dev, ret);
	ubd_ctrl_set_deadline(dev->ctrl, dev->cfg.deadline_ms);
	ubd_ctrl_set_fault(dev->ctrl, dev->fault); /* params_check_config() has parsed it */
	ret = ubd_ctrl_features(dev->ctrl, features);
	if (!ret)
		ret = ubd_ctrl_extensions(dev->ctrl, &extensions, NULL, 0);
	if (ret)
		return device_fail(dev, ret, "cannot ask the driver for its features: %s",
				   strerror(-ret));
	*features |= extensions;
	return ways_choose(dev, *features);
}

static int add(struct ubd_device *dev)
{
	uint64_t features, want;
	int ret = open_driver(dev, &features);

	if (ret)
		return ret;
	want = ways_flags(dev, features);
	dev->info = (struct ublksrv_ctrl_dev_info){
		.dev_id = dev->cfg.has_id ? dev->cfg.id : UINT32_MAX,
		.nr_hw_queues = (uint16_t)dev->cfg.queues,
		.queue_depth = (uint16_t)dev->cfg.depth,
		.max_io_buf_bytes = dev->cfg.max_io,
		.flags = want,
	};
	ret = ubd_ctrl_add(dev->ctrl, &dev->info);
	if (ret)
		return explain_add(dev, ret);
	dev->added = true;
	want &= ways[dev->zero_copy].features | UBLK_F_USER_RECOVERY |
		UBLK_F_USER_RECOVERY_REISSUE | UBLK_F_USER_RECOVERY_FAIL_IO | UBLK_F_ZONED;
	if (want & ~dev->info.flags)
		return device_fail(
			dev, -EOPNOTSUPP,
			"the driver does not grant zero copy \"%s\" with recovery \"%s\"",
			ways[dev->zero_copy].name, ubd_recovery_name(dev->cfg.recovery));
	snprintf(dev->path, sizeof(dev->path), "/dev/ublkb%u", dev->info.dev_id);
	return 0;
}

/* What the disk's users were promised, and the target does not keep any more. NULL: nothing. */
static const char *what_is_lost(uint32_t had, uint32_t now)
{
	if (had & UBLK_ATTR_READ_ONLY)
		return NULL;
	if (now & UBLK_ATTR_READ_ONLY)
		return "is read-only now";
	if (had & ~now & UBLK_ATTR_FUA)
		return "cannot write through its cache (FUA) any more";
	if ((had ^ now) & UBLK_ATTR_VOLATILE_CACHE)
		return had & UBLK_ATTR_VOLATILE_CACHE ? "cannot flush any more"
						      : "has to be flushed now";
	return NULL;
}

/* The disk is in use: what it is made from must not have become another. */
static int check_same(struct ubd_device *dev)
{
	struct ublk_params had, now;
	int ret = ubd_ctrl_params(dev->ctrl, dev->info.dev_id, &had);
	const char *lost;

	if (ret)
		return device_fail(dev, ret, "the driver does not tell what %s is like: %s",
				   dev->path, strerror(-ret));
	params_fill(dev, &now);
	if (ways[dev->zero_copy].features & ~dev->info.flags)
		return device_fail(dev, -EINVAL, "%s was not added with zero copy \"%s\"",
				   dev->path, ways[dev->zero_copy].name);
	if (had.basic.dev_sectors != now.basic.dev_sectors ||
	    had.basic.logical_bs_shift < now.basic.logical_bs_shift)
		return device_fail(
			dev, -EINVAL,
			"%s has %llu sectors and blocks of %u bytes, its target now %llu and %u",
			dev->path, (unsigned long long)had.basic.dev_sectors,
			1u << had.basic.logical_bs_shift, (unsigned long long)now.basic.dev_sectors,
			1u << now.basic.logical_bs_shift);
	/* A mirror whose leg of larger blocks is out. */
	dev->limits.logical_block = 1u << had.basic.logical_bs_shift;
	lost = what_is_lost(had.basic.attrs, now.basic.attrs);
	if (lost)
		return device_fail(dev, -EINVAL, "the target of %s %s", dev->path, lost);
	if (dev->limits.max_queues && dev->info.nr_hw_queues > dev->limits.max_queues)
		return device_fail(dev, -EINVAL,
				   "%s has %u queues, its target can only serve %u now", dev->path,
				   dev->info.nr_hw_queues, dev->limits.max_queues);
	return 0;
}

static int take_over(struct ubd_device *dev)
{
	uint64_t end = now_ns() + NODE_WAIT_MS * 1000000ULL, features;
	int ret = open_driver(dev, &features);

	if (ret)
		return ret;
	snprintf(dev->path, sizeof(dev->path), "/dev/ublkb%u", dev->cfg.id);
	/* What was done before the death would be done again, behind the write pointer. */
	if (dev->limits.zone_size && dev->cfg.recovery == UBD_RECOVER_REISSUE)
		return device_fail(
			dev, -EOPNOTSUPP,
			"%s is a zoned disk that was added with recovery \"reissue\": its "
			"requests cannot be given to another server",
			dev->path);
	ret = ubd_ctrl_info(dev->ctrl, dev->cfg.id, &dev->info);
	if (ret)
		return device_fail(dev, ret, "there is no device %u: %s", dev->cfg.id,
				   strerror(-ret));
	ret = check_same(dev);
	if (ret)
		return ret;
	/* The driver may still be putting away what the dead server had under way. */
	while ((ret = ubd_ctrl_start_recovery(dev->ctrl, dev->cfg.id)) == -EBUSY && now_ns() < end)
		poll(NULL, 0, 20);
	if (ret)
		return device_fail(dev, ret, "the driver does not give %s to another server: %s",
				   dev->path,
				   ret == -EBUSY ? "it is not waiting for one" : strerror(-ret));
	dev->added = true;
	return 0;
}

static int set_params(struct ubd_device *dev)
{
	struct ublk_params p;
	int ret;

	params_fill(dev, &p);
	ret = ubd_ctrl_set_params(dev->ctrl, dev->info.dev_id, &p);
	if (ret)
		return device_fail(dev, ret, "the driver refused the device's parameters: %s",
				   strerror(-ret));
	return 0;
}

/* udev may still be creating the node or handing it to its owner. */
static int open_char(struct ubd_device *dev)
{
	uint64_t end = now_ns() + NODE_WAIT_MS * 1000000ULL;
	char path[32];

	snprintf(path, sizeof(path), "/dev/ublkc%u", dev->info.dev_id);
	for (;;) {
		/* Non-blocking, so that io_uring need not hand its reads and writes to a worker. */
		dev->char_fd = open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK);
		if (dev->char_fd >= 0)
			break;
		if ((errno != ENOENT && errno != EACCES && errno != EPERM) || now_ns() > end)
			return device_fail(dev, -errno, "cannot open %s: %s", path,
					   strerror(errno));
		poll(NULL, 0, 5);
	}
	dev->fds[0] = dev->char_fd;
	if (!dev->nr_fds)
		dev->nr_fds = 1;
	return 0;
}

/* Where and how its thread runs. */
static void schedule_queue(struct ubd_device *dev, struct ubd_queue *q)
{
	const struct sched_param param = {0};
	cpu_set_t cpus;

	/*
	 * Waking, such a thread does not preempt: where it shares a CPU with the submitter, it
	 * finds many requests and not one or two.
	 */
	if (dev->cfg.batch)
		pthread_setschedparam(q->thread, SCHED_BATCH, &param);
	if (!dev->cfg.pin || dev->local)
		return;
	if (!ubd_ctrl_affinity(dev->ctrl, dev->info.dev_id, (uint16_t)q->index, &cpus,
			       sizeof(cpus)) &&
	    CPU_COUNT(&cpus))
		pthread_setaffinity_np(q->thread, sizeof(cpus), &cpus);
}

static int start_threads(struct ubd_device *dev)
{
	unsigned running = 0;
	int ret = 0;

	for (unsigned i = 0; i < dev->nr_queues; i++) {
		struct ubd_queue *q = &dev->queues[i];
		char name[16];

		ret = -pthread_create(&q->thread, NULL, queue_thread, q);
		if (ret) {
			device_fail(dev, ret, "cannot start queue thread %u of %u: %s", i,
				    dev->nr_queues, strerror(-ret));
			break;
		}
		q->has_thread = true;
		running++;
		snprintf(name, sizeof(name), "ubd-q%u", i);
		pthread_setname_np(q->thread, name);
		schedule_queue(dev, q);
	}
	pthread_mutex_lock(&dev->lock);
	while (dev->queues_up + dev->queues_down < running)
		pthread_cond_wait(&dev->cond, &dev->lock);
	if (!ret)
		ret = dev->queue_error;
	pthread_mutex_unlock(&dev->lock);
	return ret;
}

static int start_queues(struct ubd_device *dev)
{
	int ret = 0;

	dev->offload = offload_new(
		ways[dev->zero_copy].splice ? dev->info.nr_hw_queues * dev->info.queue_depth : 0);
	dev->pollfds = calloc(1 + dev->info.nr_hw_queues, sizeof(*dev->pollfds));
	dev->queues = aligned_alloc(CACHE_LINE, dev->info.nr_hw_queues * sizeof(*dev->queues));
	if (!dev->queues || !dev->offload || !dev->pollfds)
		return -ENOMEM;
	for (; dev->nr_queues < dev->info.nr_hw_queues && !ret; dev->nr_queues++)
		ret = queue_init(&dev->queues[dev->nr_queues], dev, dev->nr_queues);
	if (ret)
		return ret;
	if (!dev->cfg.embedded)
		return start_threads(dev);
	for (unsigned i = 0; i < dev->nr_queues && !ret; i++)
		ret = queue_open(&dev->queues[i]);
	return ret;
}

/* The queues have no threads: serve them while a control command is under way. */
static int serve_while_waiting(void *arg, int fd, int ms)
{
	struct ubd_device *dev = arg;
	struct pollfd *fds = dev->pollfds;
	int ret = 0;

	fds[0] = (struct pollfd){.fd = fd, .events = POLLIN};
	for (unsigned i = 0; i < dev->nr_queues; i++)
		fds[1 + i] = (struct pollfd){
			.fd = dev->queues[i].ended ? -1 : ubd_queue_fd(&dev->queues[i]),
			.events = POLLIN,
		};
	if (poll(fds, 1 + dev->nr_queues, ms) <= 0)
		return 0;
	for (unsigned i = 0; i < dev->nr_queues; i++)
		if (fds[1 + i].revents)
			ret = MIN(ret, ubd_queue_process(&dev->queues[i]));
	/* A queue that broke will fetch nothing, and a start waits for that; a stop does not. */
	return dev->started ? 0 : ret;
}

/* The queues' threads serve: look now and then whether one broke, as a start would wait for it. */
static int watch_while_starting(void *arg, int fd, int ms)
{
	struct ubd_device *dev = arg;
	struct pollfd p = {.fd = fd, .events = POLLIN};
	int ret;

	if (poll(&p, 1, MIN(ms, START_WATCH_MS)) > 0)
		return 0;
	pthread_mutex_lock(&dev->lock);
	ret = dev->queue_error;
	pthread_mutex_unlock(&dev->lock);
	return ret;
}

static int start_disk(struct ubd_device *dev)
{
	int ret;

	ctrl_set_idle(dev->ctrl, dev->cfg.embedded ? serve_while_waiting : watch_while_starting,
		      dev);
	ret = dev->cfg.take_over ? ubd_ctrl_end_recovery(dev->ctrl, dev->info.dev_id, getpid())
				 : ubd_ctrl_start(dev->ctrl, dev->info.dev_id, getpid());
	if (ret == -ETIMEDOUT)
		return device_fail(
			dev, ret,
			"the driver did not start %s within %u ms: it waits for the queues "
			"or for the partition scan",
			dev->path, dev->cfg.deadline_ms);
	if (ret)
		return device_fail(dev, ret, "the driver refused to start %s: %s", dev->path,
				   strerror(-ret));
	if (!dev->cfg.embedded)
		ctrl_set_idle(dev->ctrl, NULL, NULL);
	dev->started = true;
	return 0;
}

int ubd_device_start(struct ubd_device *dev)
{
	int ret;

	dev->error[0] = 0;
	if (!dev->cfg.deadline_ms)
		dev->cfg.deadline_ms = DEFAULT_DEADLINE_MS;
	ret = open_target(dev);
	if (!ret)
		ret = dev->cfg.take_over ? take_over(dev) : add(dev);
	if (!ret && !dev->cfg.take_over)
		ret = set_params(dev);
	if (!ret)
		ret = open_char(dev);
	if (!ret)
		ret = start_queues(dev);
	if (!ret)
		ret = start_disk(dev);
	if (ret) {
		device_fail(dev, ret, "cannot start the device: %s", strerror(-ret));
		life_end(dev, dev->cfg.take_over);
	}
	return ret;
}

int ubd_local_start(struct ubd_device *dev)
{
	int ret;

	dev->error[0] = 0;
	dev->local = true;
	dev->cfg.embedded = false;
	ret = open_target(dev);
	if (!ret)
		ret = ways_choose(dev, 0);
	dev->info = (struct ublksrv_ctrl_dev_info){
		.nr_hw_queues = (uint16_t)dev->cfg.queues,
		.queue_depth = (uint16_t)dev->cfg.depth,
		.max_io_buf_bytes = dev->cfg.max_io,
	};
	if (!ret)
		ret = start_queues(dev);
	if (ret) {
		device_fail(dev, ret, "cannot start the target: %s", strerror(-ret));
		life_end(dev, false);
		return ret;
	}
	dev->started = true;
	return 0;
}

/* ---- Ending -------------------------------------------------------------------------------- */

int ubd_device_stop(struct ubd_device *dev)
{
	struct ubd_ctrl *ctrl;
	int ret;

	if (dev->local) {
		for (unsigned i = 0; i < dev->nr_queues; i++)
			queue_stop(&dev->queues[i]);
		return 0;
	}
	if (!dev->added)
		return -ENODEV;
	/* A handle of its own: this may be any thread. */
	ret = ubd_ctrl_open(&ctrl);
	if (ret)
		return ret;
	ubd_ctrl_set_deadline(ctrl, dev->cfg.deadline_ms);
	if (dev->cfg.embedded)
		ctrl_set_idle(ctrl, serve_while_waiting, dev);
	ret = ubd_ctrl_stop(ctrl, dev->info.dev_id);
	ubd_ctrl_close(ctrl);
	return ret;
}

static void wait_embedded(struct ubd_device *dev)
{
	for (unsigned i = 0; i < dev->nr_queues; i++) {
		struct ubd_queue *q = &dev->queues[i];

		while (q->open && q->up && !q->ended) {
			struct pollfd p = {.fd = ubd_queue_fd(q), .events = POLLIN};

			poll(&p, 1, -1);
			ubd_queue_process(q);
		}
	}
}

int ubd_device_wait(struct ubd_device *dev)
{
	int ret;

	if (dev->cfg.embedded)
		wait_embedded(dev);
	pthread_mutex_lock(&dev->lock);
	while (!dev->cfg.embedded && dev->queues_down < dev->nr_queues)
		pthread_cond_wait(&dev->cond, &dev->lock);
	ret = dev->queue_error;
	pthread_mutex_unlock(&dev->lock);
	return ret;
}

void life_queue_ended(struct ubd_queue *q)
{
	struct ubd_device *dev = q->dev;

	pthread_mutex_lock(&dev->lock);
	if (q->error && !dev->queue_error)
		dev->queue_error = q->error;
	dev->queues_down++;
	if (dev->queue_error && dev->queues_down < dev->nr_queues) {
		/* The others could serve, but a disk with one queue gone hangs its users. */
		for (unsigned i = 0; i < dev->nr_queues; i++)
			queue_stop(&dev->queues[i]);
	} else if (dev->queue_error && dev->char_fd >= 0) {
		/* What I/O the driver still has for us ends now, as when a server dies. */
		close(dev->char_fd);
		dev->char_fd = -1;
	}
	pthread_cond_broadcast(&dev->cond);
	pthread_mutex_unlock(&dev->lock);
}

static void end_queues(struct ubd_device *dev)
{
	/* Set-up failed somewhere: nobody else will tell them. */
	for (unsigned i = 0; i < dev->nr_queues; i++)
		queue_stop(&dev->queues[i]);
	if (dev->cfg.embedded)
		wait_embedded(dev);
	for (unsigned i = 0; i < dev->nr_queues; i++) {
		if (dev->queues[i].has_thread)
			pthread_join(dev->queues[i].thread, NULL);
		else
			queue_close(&dev->queues[i]);
	}
	/* Its threads wake the queues. */
	offload_free(dev->offload);
	dev->offload = NULL;
	for (unsigned i = 0; i < dev->nr_queues; i++)
		queue_destroy(&dev->queues[i]);
	free(dev->queues);
	dev->queues = NULL;
	dev->nr_queues = 0;
	free(dev->pollfds);
	dev->pollfds = NULL;
}

/* Not the waiting form: a probe may still hold the disk. */
static void delete_device(struct ubd_device *dev)
{
	struct ubd_ctrl *fresh;
	int ret = ubd_ctrl_del_async(dev->ctrl, dev->info.dev_id);

	if (!ret || ret == -ENODEV || ubd_ctrl_open(&fresh))
		return;
	/* The handle may be unusable after a command that timed out; the device must go. */
	ubd_ctrl_set_deadline(fresh, dev->cfg.deadline_ms);
	ret = ubd_ctrl_del_async(fresh, dev->info.dev_id);
	ubd_ctrl_close(fresh);
	if (ret && ret != -ENODEV)
		ubd_device_notice(dev, "cannot delete device %u: %s; 'ubd del %u' tries again",
				  dev->info.dev_id, strerror(-ret), dev->info.dev_id);
}

void life_end(struct ubd_device *dev, bool keep)
{
	if (dev->started && !dev->local && !keep)
		ubd_device_stop(dev);
	if (dev->started && dev->cfg.embedded)
		wait_embedded(dev);
	end_queues(dev);
	if (dev->ctrl)
		ctrl_set_idle(dev->ctrl, NULL, NULL); /* no queues are left to serve meanwhile */
	if (dev->char_fd >= 0)
		close(dev->char_fd);
	dev->char_fd = -1;
	if (dev->added && !keep)
		delete_device(dev);
	dev->added = dev->started = false;
	ubd_ctrl_close(dev->ctrl);
	dev->ctrl = NULL;
	if (dev->target_open && dev->target->close)
		dev->target->close(dev, dev->self);
	dev->target_open = false;
	dev->nr_fds = 0;
}
