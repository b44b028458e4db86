{{/* The variables of the dispatcher, for its Deployment, the tests and the last step of an uninstall. */}}
{{- define "lora-trainer.dispatcherEnvironment" -}}
{{- $environment := dict
  "JOB_BACKEND" "kubernetes"
  "NAMESPACE" (dict "valueFrom" (dict "fieldRef" (dict "fieldPath" "metadata.namespace")))
  "INSTANCE" .Release.Name
  "QUEUE" .Values.amqp.queue
  "AMQP_URL" (dict "valueFrom" (dict "secretKeyRef" (dict
    "name" (include "lora-trainer.amqpSecret" .) "key" (include "lora-trainer.amqpKey" .))))
  "MAX_ACTIVE_JOBS" .Values.dispatcher.maxActiveJobs
  "PROGRESS_SECONDS" .Values.dispatcher.progressSeconds
  "START_GRACE_SECONDS" .Values.dispatcher.startGraceSeconds
  "WEBHOOK_GIVE_UP_HOURS" .Values.dispatcher.webhookGiveUpHours
  "JOB_TEMPLATE" "/etc/lora-trainer/job-template.yaml"
  "LOG_FORMAT" "json"
  "HEALTH_PORT" "8080"
  "LEASE_NAME" (include "lora-trainer.fullname" .)
-}}
{{- with .Values.backend -}}
{{- with .url }}{{ $_ := set $environment "BACKEND_URL" . }}{{ end -}}
{{- with .allowedHosts }}{{ $_ := set $environment "WEBHOOK_ALLOWED_HOSTS" (join "," .) }}{{ end -}}
{{- end -}}
{{- if or .Values.backend.existingSecret .Values.backend.token .Values.backend.webhookSecret -}}
{{- $secret := include "lora-trainer.backendSecret" . -}}
{{- range $name, $key := dict "BACKEND_TOKEN" "backend-token" "WEBHOOK_SECRET" "webhook-secret" -}}
{{- $reference := dict "name" $secret "key" $key "optional" true -}}
{{- $_ := set $environment $name (dict "valueFrom" (dict "secretKeyRef" $reference)) -}}
{{- end -}}
{{- end -}}
{{- range $name, $value := .Values.dispatcher.extraEnv }}{{ $_ := set $environment $name $value }}{{ end -}}
{{- include "lora-trainer.environment" $environment -}}
{{- end -}}

{{- define "lora-trainer.dispatcherImage" -}}
{{- include "lora-trainer.image" (dict "image" .Values.dispatcher.image "appVersion" .Chart.AppVersion) -}}
{{- end -}}

{{/* What all pods of the dispatcher's image have: the head of their spec. */}}
{{- define "lora-trainer.dispatcherPod" -}}
enableServiceLinks: false
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
securityContext:
  {{- toYaml .Values.dispatcher.podSecurityContext | nindent 2 }}
{{- with .Values.dispatcher.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.dispatcher.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}
