{{/* The name of all objects: the release's, with the chart's behind it unless it is in there. */}}
{{- define "lora-trainer.fullname" -}}
{{- $chart := default .Chart.Name .Values.nameOverride -}}
{{- $name := ternary .Release.Name (printf "%s-%s" .Release.Name $chart) (contains $chart .Release.Name) -}}
{{- regexReplaceAll "[-.]+$" (default $name .Values.fullnameOverride | trunc 50) "" -}}
{{- end -}}

{{/* A CronJob's name has 52 characters at the most, of which -rerun takes 6. */}}
{{- define "lora-trainer.rerunName" -}}
{{ regexReplaceAll "[-.]+$" (include "lora-trainer.fullname" . | trunc 46) "" }}-rerun
{{- end -}}

{{/* The name of all Services: theirs hold no dot and begin with a letter. */}}
{{- define "lora-trainer.serviceName" -}}
{{- regexReplaceAll "^[0-9]" (include "lora-trainer.fullname" . | replace "." "-") "x-${0}" -}}
{{- end -}}

{{/* Labels of all objects that are no training; add the component yourself. */}}
{{- define "lora-trainer.labels" -}}
app.kubernetes.io/name: lora-trainer
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "lora-trainer.dispatcherSelector" -}}
app.kubernetes.io/name: lora-trainer
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/component: dispatcher
{{- end -}}

{{/* Labels of Jobs and their pods: the dispatcher watches by them. */}}
{{- define "lora-trainer.jobSelector" -}}
app.kubernetes.io/name: lora-trainer
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/component: training-job
{{- end -}}

{{- define "lora-trainer.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{ default (include "lora-trainer.fullname" .) .Values.serviceAccount.name }}
{{- else -}}
{{ default "default" .Values.serviceAccount.name }}
{{- end -}}
{{- end -}}

{{/* repository:tag, or repository@digest; takes {image, appVersion}. */}}
{{- define "lora-trainer.image" -}}
{{- if .image.digest -}}
{{ .image.repository }}@{{ .image.digest }}
{{- else -}}
{{ .image.repository }}:{{ default .appVersion .image.tag }}
{{- end -}}
{{- end -}}

{{/* What every container may not do. */}}
{{- define "lora-trainer.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* Variables from a map: name to value, or name to {valueFrom: ...}. As JSON a large number keeps its digits. */}}
{{- define "lora-trainer.environment" -}}
{{- range $name, $value := . }}
- name: {{ $name }}
  {{- if kindIs "map" $value }}
  {{- toYaml $value | nindent 2 }}
  {{- else }}
  value: {{ ternary $value ($value | toJson) (kindIs "string" $value) | quote }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* The Secret with the broker's URL. */}}
{{- define "lora-trainer.amqpSecret" -}}
{{ default (printf "%s-amqp" (include "lora-trainer.fullname" .)) .Values.amqp.existingSecret }}
{{- end -}}

{{- define "lora-trainer.amqpKey" -}}
{{ if .Values.amqp.existingSecret }}{{ .Values.amqp.secretKey }}{{ else }}amqp-url{{ end }}
{{- end -}}

{{- define "lora-trainer.backendSecret" -}}
{{ default (printf "%s-backend" (include "lora-trainer.fullname" .)) .Values.backend.existingSecret }}
{{- end -}}

{{- define "lora-trainer.s3Secret" -}}
{{ default (printf "%s-s3" (include "lora-trainer.fullname" .)) .Values.s3.existingSecret }}
{{- end -}}

{{- define "lora-trainer.modelsClaim" -}}
{{ default (printf "%s-models" (include "lora-trainer.fullname" .)) .Values.models.existingClaim }}
{{- end -}}

{{- define "lora-trainer.cacheClaim" -}}
{{ default (printf "%s-base-model" (include "lora-trainer.fullname" .)) .Values.baseModel.cache.existingClaim }}
{{- end -}}

{{/* Not empty where the base model is downloaded from the hub onto a claim. */}}
{{- define "lora-trainer.usesCache" -}}
{{- if and .Values.baseModel.cache.enabled (not .Values.baseModel.path) (not .Values.baseModel.image) }}yes{{ end -}}
{{- end -}}
